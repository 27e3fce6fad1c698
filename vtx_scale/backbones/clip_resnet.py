"""CLIP's ResNet (Radford et al. 2021, arXiv:2103.00020): a stem of three convolutions, no stride in
any block's convolution but average pooling before it (He et al. 2019, ResNet-D; Zhang 2019),
attention in place of the last pooling.

B images, w width of the stem, C = 32 w channels of the features, N = (S/32)^2 + 1 tokens
of the pool.
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtx_scale.backbones.resnet import conv
from vtx_scale.blocks.norm import NORMS, BatchNorm
from vtx_scale.blocks.rules import Rule, Rules, fan_in, normal, uniform, zeros
from vtx_scale.blocks.slots import SlotContext
from vtx_scale.specs.resnet import ClipResNetConfig


class Bottleneck(nn.Module):
    """x (B, inside, H, W) -> (B, outside, H/stride, W/stride);
    pools after its 3x3 convolution, and in the shortcut.
    """

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        inner, self.stride = outside // 4, stride
        self.conv1, self.norm1 = conv(inside, inner, 1), BatchNorm(inner)
        self.conv2, self.norm2 = conv(inner, inner, 3), BatchNorm(inner)
        self.conv3, self.norm3 = conv(inner, outside, 1), BatchNorm(outside)
        same = inside == outside and stride == 1
        self.shortcut = None if same else conv(inside, outside, 1)
        self.norm_shortcut = None if same else BatchNorm(outside)

    def pool(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.stride) if self.stride > 1 else x

    def forward(self, x: Tensor, slots: SlotContext | None = None) -> Tensor:
        y = F.relu_(self.norm1(self.conv1(x), slots))
        y = self.pool(F.relu_(self.norm2(self.conv2(y), slots)))
        y = self.norm3(self.conv3(y), slots)
        if self.shortcut is not None and self.norm_shortcut is not None:
            x = self.norm_shortcut(self.shortcut(self.pool(x)), slots)
        return F.relu_(y.add_(x))


class AttentionPool(nn.Module):
    """(B, C, h, w) -> (B, embed): the mean of the places asks, the mean and the places answer."""

    def __init__(self, width: int, grid: int, heads: int, embed: int) -> None:
        super().__init__()
        self.heads = heads
        self.positions = nn.Parameter(torch.empty(1, grid * grid + 1, width))
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.c = nn.Linear(width, embed)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        x_BNC = torch.cat([x.mean(1, keepdim=True), x], dim=1) + self.positions
        B, N, C = x_BNC.shape
        q = self.q(x_BNC[:, :1]).view(B, 1, self.heads, -1).transpose(1, 2)
        k, v = (f(x_BNC).view(B, N, self.heads, -1).transpose(1, 2) for f in (self.k, self.v))
        out: Tensor = self.c(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, C))
        return out


class ClipResNet(nn.Module):
    """(B, 3, S, S) -> (B, embed)."""

    def __init__(self, spec: ClipResNetConfig) -> None:
        super().__init__()
        self.spec = spec
        w = spec.stem
        self.conv1, self.norm1 = conv(3, w // 2, 3, 2), BatchNorm(w // 2)
        self.conv2, self.norm2 = conv(w // 2, w // 2, 3), BatchNorm(w // 2)
        self.conv3, self.norm3 = conv(w // 2, w, 3), BatchNorm(w)
        self.stages = nn.ModuleList()
        inside = w
        for k, depth in enumerate(spec.blocks):
            outside = 4 * w * 2**k
            self.stages.append(
                nn.ModuleList(
                    Bottleneck(outside if i else inside, outside, 2 if k and not i else 1)
                    for i in range(depth)
                )
            )
            inside = outside
        self.pool = AttentionPool(inside, spec.resolution // 32, spec.heads, spec.embed)
        self.parameter_rules = rules(spec)

    @staticmethod
    def macs(spec: ClipResNetConfig, count: Callable[..., int]) -> int:
        """The pool is counted as published: there every place asks,
        and all answers but the mean's are thrown away.
        """
        places, width = (spec.resolution // 32) ** 2, spec.widths[-1]
        unused = places * (width * width + 2 * (places + 1) * width + width * spec.embed)
        return count(ClipResNet(spec), torch.empty(1, *spec.input)) + unused

    def units(self) -> Iterable[nn.Module]:
        """Blocks that are sharded, compiled and recomputed as one."""
        return [block for stage in self.stages for block in stage.children()]

    def pyramid(self, image: Tensor, slots: SlotContext | None = None) -> list[Tensor]:
        """(B, 3, S, S) -> (B, widths[k], S/4/2^k, S/4/2^k) of each stage."""
        x = F.relu_(self.norm1(self.conv1(image), slots))
        x = F.relu_(self.norm2(self.conv2(x), slots))
        x = F.avg_pool2d(F.relu_(self.norm3(self.conv3(x), slots)), 2)
        maps = []
        for stage in self.stages:
            for block in stage.children():
                x = block(x, slots)
            maps.append(x)
        return maps

    def features(self, image: Tensor, slots: SlotContext | None = None) -> Tensor:
        """(B, embed): pooled by attention."""
        pooled: Tensor = self.pool(self.pyramid(image, slots)[-1])
        return pooled

    def forward(self, image: Tensor, slots: SlotContext | None = None) -> Tensor:
        return self.features(image, slots)

    def layer(self, name: str) -> int:
        """0 of the first layers, then a number for each block, the pool's last."""
        part, _, rest = name.partition(".")
        if part != "stages":
            return 1 + sum(self.spec.blocks) if part == "pool" else 0
        stage, block = map(int, rest.split(".")[:2])
        return 1 + sum(self.spec.blocks[:stage]) + block


def rules(spec: ClipResNetConfig) -> Rules:
    """torch's defaults but for the last gain of a block and the pool's matrices."""
    width = spec.widths[-1]
    return (
        Rule(r"stages\..*\.norm3\.weight", zeros),
        *NORMS,
        Rule(r"pool\.positions|pool\..*\.weight", normal(width**-0.5)),
        Rule(r"pool\..*", uniform(width**-0.5)),
        Rule(r".*", uniform(lambda shape: fan_in(shape) ** -0.5)),
    )
