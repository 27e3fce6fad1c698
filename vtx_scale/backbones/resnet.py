"""ResNet (He et al. 2016, arXiv:1512.03385), and wide ResNet (Zagoruyko &
Komodakis 2016, arXiv:1605.07146).

B images, C channels. Departs from the paper: a bottleneck strides in its 3x3 convolution
("v1.5"), and the last gain of a block starts at 0 (Goyal et al. 2017, arXiv:1706.02677). Batch
statistics: `vtx_scale.blocks.norm`.
"""

import math
from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor, nn

from vtx_scale.blocks.norm import NORMS, BatchNorm
from vtx_scale.blocks.rules import Rule, Rules, normal, uniform, zeros
from vtx_scale.blocks.slots import SlotContext
from vtx_scale.specs.resnet import ResNetConfig


def conv(inside: int, outside: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, kernel, stride, kernel // 2, bias=False)


class Basic(nn.Module):
    """Two 3x3 convolutions: x (B, inside, H, W) -> (B, outside, H/stride, W/stride)."""

    def __init__(self, inside: int, outside: int, stride: int, wide: int) -> None:
        super().__init__()
        inner = outside * wide
        self.conv1, self.norm1 = conv(inside, inner, 3, stride), BatchNorm(inner)
        self.conv2, self.norm2 = conv(inner, outside, 3), BatchNorm(outside)
        same = inside == outside and stride == 1
        self.shortcut = None if same else conv(inside, outside, 1, stride)
        self.norm_shortcut = None if same else BatchNorm(outside)

    def forward(self, x: Tensor, slots: SlotContext | None = None) -> Tensor:
        y = F.relu_(self.norm1(self.conv1(x), slots))
        y = self.norm2(self.conv2(y), slots)
        if self.shortcut is not None and self.norm_shortcut is not None:
            x = self.norm_shortcut(self.shortcut(x), slots)
        return F.relu_(y.add_(x))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1: x (B, inside, H, W) -> (B, outside, H/stride, W/stride)."""

    def __init__(self, inside: int, outside: int, stride: int, wide: int) -> None:
        super().__init__()
        inner = outside // 4 * wide
        self.conv1, self.norm1 = conv(inside, inner, 1), BatchNorm(inner)
        self.conv2, self.norm2 = conv(inner, inner, 3, stride), BatchNorm(inner)
        self.conv3, self.norm3 = conv(inner, outside, 1), BatchNorm(outside)
        same = inside == outside and stride == 1
        self.shortcut = None if same else conv(inside, outside, 1, stride)
        self.norm_shortcut = None if same else BatchNorm(outside)

    def forward(self, x: Tensor, slots: SlotContext | None = None) -> Tensor:
        y = F.relu_(self.norm1(self.conv1(x), slots))
        y = F.relu_(self.norm2(self.conv2(y), slots))
        y = self.norm3(self.conv3(y), slots)
        if self.shortcut is not None and self.norm_shortcut is not None:
            x = self.norm_shortcut(self.shortcut(x), slots)
        return F.relu_(y.add_(x))


class ResNet(nn.Module):
    """(B, 3, S, S) -> (B, C) averaged over the places,
    or (B, classes) where the spec names classes.
    """

    def __init__(self, spec: ResNetConfig) -> None:
        super().__init__()
        self.spec = spec
        self.conv, self.norm = conv(3, 64, 7, 2), BatchNorm(64)
        kind, grow = (Basic, 1) if spec.kind == "basic" else (Bottleneck, 4)
        self.stages = nn.ModuleList()
        inside = 64
        for k, depth in enumerate(spec.blocks):
            outside = 64 * 2**k * grow
            self.stages.append(
                nn.ModuleList(
                    kind(outside if i else inside, outside, 2 if k and not i else 1, spec.wide)
                    for i in range(depth)
                )
            )
            inside = outside
        self.head = nn.Linear(spec.width, spec.classes) if spec.classes else None
        self.parameter_rules = rules(spec)

    def units(self) -> Iterable[nn.Module]:
        """Blocks that are sharded, compiled and recomputed as one."""
        return [block for stage in self.stages for block in stage.children()]

    def pyramid(self, image: Tensor, slots: SlotContext | None = None) -> list[Tensor]:
        """(B, 3, S, S) -> (B, widths[k], S/4/2^k, S/4/2^k) of each stage."""
        x = F.max_pool2d(F.relu_(self.norm(self.conv(image), slots)), 3, 2, 1)
        maps = []
        for stage in self.stages:
            for block in stage.children():
                x = block(x, slots)
            maps.append(x)
        return maps

    def layer(self, name: str) -> int:
        """0 of the first layers, then a number for each block, the classifier's last."""
        part, _, rest = name.partition(".")
        if part != "stages":
            return 0 if part in ("conv", "norm") else 1 + sum(self.spec.blocks)
        stage, block = map(int, rest.split(".")[:2])
        return 1 + sum(self.spec.blocks[:stage]) + block

    def features(self, image: Tensor, slots: SlotContext | None = None) -> Tensor:
        """(B, C): what a classifier sees."""
        return self.pyramid(image, slots)[-1].mean((2, 3))

    def forward(self, image: Tensor, slots: SlotContext | None = None) -> Tensor:
        x = self.features(image, slots)
        return self.head(x) if self.head is not None else x


def rules(spec: ResNetConfig) -> Rules:
    """Convolutions as He et al. 2015 by what goes out of them, the last gain of a block 0,
    the classifier as torch's default.
    """
    last = "norm2" if spec.kind == "basic" else "norm3"
    return (
        Rule(rf"stages\..*\.{last}\.weight", zeros),
        *NORMS,
        Rule(r"head\..*", uniform(spec.width**-0.5), group="head"),
        Rule(r".*", normal(lambda shape: math.sqrt(2 / (shape[0] * shape[2] * shape[3])))),
    )
