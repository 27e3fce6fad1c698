"""The convolutional stem of the hybrid ViTs (Dosovitskiy et al. 2021, arXiv:2010.11929,
section 3.1), as BiT has it (Kolesnikov et al. 2020, arXiv:1912.11370): ResNet v1.5 with
weight-standardised convolutions (Qiao et al. 2019, arXiv:1903.10520) and group norms, which need
no batch statistics.

B images. Padding is TensorFlow's SAME: where it is odd, the larger half comes after. As the
authors' code has it, `weight_eps` is added to the standard deviation and norms have eps 1e-6; timm
adds 1e-8 to the variance and has 1e-5.
"""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtx_scale.blocks.rules import Rule, Rules, fan_in, ones, truncated, zeros

GROUPS = 32
# standard deviation of a standard normal that is cut at two of its own
TRUNCATED = 0.87962566103423978


def same(x: Tensor, kernel: int, stride: int, value: float = 0.0) -> Tensor:
    """x (B, C, H, W) padded so that every stride-th place has an output."""

    def both(size: int) -> tuple[int, int]:
        extra = max(0, (-(-size // stride) - 1) * stride + kernel - size)
        return extra // 2, extra - extra // 2

    pad = (*both(x.shape[3]), *both(x.shape[2]))
    return F.pad(x, pad, value=value) if any(pad) else x


class StandardConv(nn.Module):
    """A convolution without bias whose filters have mean 0 and standard deviation 1 whenever
    they are used.
    """

    def __init__(self, inside: int, outside: int, kernel: int, stride: int, eps: float) -> None:
        super().__init__()
        self.kernel, self.stride, self.eps = kernel, stride, eps
        self.weight = nn.Parameter(torch.empty(outside, inside, kernel, kernel))

    def forward(self, x: Tensor) -> Tensor:
        wide = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32)).flatten(1)
        centred = wide - wide.mean(1, keepdim=True)
        deviation = torch.linalg.vector_norm(centred, dim=1, keepdim=True) * wide.shape[1] ** -0.5
        weight = (
            (centred * (deviation + self.eps).reciprocal())
            .view_as(self.weight)
            .to(self.weight.dtype)
        )
        return F.conv2d(same(x, self.kernel, self.stride), weight, stride=self.stride)


class Unit(nn.Module):
    """1x1, 3x3, 1x1: x (B, inside, H, W) -> (B, outside, H/stride, W/stride)."""

    def __init__(
        self, inside: int, outside: int, stride: int, weight_eps: float, eps: float
    ) -> None:
        super().__init__()
        inner = outside // 4
        self.conv1, self.norm1 = (
            StandardConv(inside, inner, 1, 1, weight_eps),
            nn.GroupNorm(GROUPS, inner, eps),
        )
        self.conv2, self.norm2 = (
            StandardConv(inner, inner, 3, stride, weight_eps),
            nn.GroupNorm(GROUPS, inner, eps),
        )
        self.conv3, self.norm3 = (
            StandardConv(inner, outside, 1, 1, weight_eps),
            nn.GroupNorm(GROUPS, outside, eps),
        )
        plain = inside == outside and stride == 1
        self.shortcut = None if plain else StandardConv(inside, outside, 1, stride, weight_eps)
        self.norm_shortcut = None if plain else nn.GroupNorm(GROUPS, outside, eps)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu_(self.norm1(self.conv1(x)))
        y = F.relu_(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        if self.shortcut is not None and self.norm_shortcut is not None:
            x = self.norm_shortcut(self.shortcut(x))
        return F.relu_(y.add_(x))


class BitStem(nn.Module):
    """(B, 3, S, S) -> (B, channels, S/stride, S/stride).

    blocks: units of each stage; () leaves the first layers.
    """

    def __init__(
        self, blocks: tuple[int, ...], weight_eps: float = 1e-5, eps: float = 1e-6
    ) -> None:
        super().__init__()
        self.conv, self.norm = StandardConv(3, 64, 7, 2, weight_eps), nn.GroupNorm(GROUPS, 64, eps)
        self.stages = nn.ModuleList()
        self.channels = 64
        for k, depth in enumerate(blocks):
            outside = 256 * 2**k
            self.stages.append(
                nn.ModuleList(
                    Unit(
                        outside if i else self.channels,
                        outside,
                        2 if k and not i else 1,
                        weight_eps,
                        eps,
                    )
                    for i in range(depth)
                )
            )
            self.channels = outside
        self.stride = 4 * 2 ** max(0, len(blocks) - 1)

    def units(self) -> Iterable[nn.Module]:
        """Blocks that are sharded, compiled and recomputed as one."""
        return [unit for stage in self.stages for unit in stage.children()]

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu_(self.norm(self.conv(image)))
        x = F.max_pool2d(same(x, 3, 2, float("-inf")), 3, 2)
        for unit in self.units():
            x = unit(x)
        return x


# flax's: LeCun's normal, cut at two standard deviations; the last gains 0
RULES: Rules = (
    Rule(r".*\.norm3\.weight", zeros),
    Rule(r"(.*\.)?norm\w*\.weight", ones),
    Rule(r"(.*\.)?norm\w*\.bias", zeros),
    Rule(r".*", truncated(lambda shape: math.sqrt(1 / fan_in(shape)) / TRUNCATED)),
)
