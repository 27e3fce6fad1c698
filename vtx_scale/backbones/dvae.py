"""The networks of DALL-E's discrete VAE (Ramesh et al. 2021, A.1), as released.

No norms; ReLUs in front of convolutions.

B pictures of S x S, K codes, h x h of them a picture. The convolutions next to the codes
stay in float32.
"""

from collections.abc import Callable, Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtx_scale.blocks.autocast import no_autocast
from vtx_scale.blocks.rules import Rule, Rules, fan_in, normal, zeros
from vtx_scale.specs.dvae import CodecConfig


class Block(nn.Module):
    """x + gain * four convolutions: of 3, 3, 3 and 1 in the encoder, 1, 3, 3 and 3 in the decoder;
    a quarter as wide inside.
    """

    def __init__(self, before: int, after: int, kernels: tuple[int, ...], gain: float) -> None:
        super().__init__()
        self.gain, inner = gain, after // 4
        sizes = zip(
            (before, inner, inner, inner), (inner, inner, inner, after), kernels, strict=True
        )
        self.convs = nn.ModuleList(nn.Conv2d(a, b, k, padding=k // 2) for a, b, k in sizes)
        self.skip = nn.Conv2d(before, after, 1) if before != after else None

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for conv in self.convs:
            y = conv(F.relu(y))
        return (x if self.skip is None else self.skip(x)) + self.gain * y


def wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def groups_of(
    spec: CodecConfig, before: int, widths: Iterable[int], kernels: tuple[int, ...]
) -> nn.ModuleList:
    groups, gain = (
        nn.ModuleList(),
        1 / (spec.groups * spec.blocks) ** 2 if spec.gain is None else spec.gain,
    )
    for width in widths:
        groups.append(
            nn.ModuleList(
                Block(before if i == 0 else width, width, kernels, gain) for i in range(spec.blocks)
            )
        )
        before = width
    return groups


class Encoder(nn.Module):
    """(B, 3, S, S), mapped -> (B, K, h, h) logits of the codes."""

    def __init__(self, spec: CodecConfig) -> None:
        super().__init__()
        widths = [spec.width << g for g in range(spec.groups)]
        self.input = nn.Conv2d(3, spec.width, 7, padding=3)
        self.groups = groups_of(spec, spec.width, widths, (3, 3, 3, 1))
        self.output = nn.Conv2d(widths[-1], spec.vocab, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.input(x)
        for g, blocks in enumerate(self.groups):
            for block in blocks.children():
                x = block(x)
            if g < len(self.groups) - 1:
                x = F.max_pool2d(x, 2)
        with no_autocast(x.device):
            out: Tensor = self.output(F.relu(x).to(wide(x)))
            return out


class OfCodes(nn.Conv2d):
    """1x1 convolution of shares, (B, K, h, h) floats; of codes, (B, h, h) int64, what shares of
    0 and 1 would give, by a look-up. One module, so that a sharded weight is gathered for both.
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.is_floating_point():
            return super().forward(input)
        table = self.weight.flatten(1).T
        return (F.embedding(input, table) + cast(Tensor, self.bias)).permute(0, 3, 1, 2)


class Decoder(nn.Module):
    """(B, K, h, h), the share of each code -> (B, 6, S, S):
    the location of each channel, then the logarithm of its scale.
    """

    def __init__(self, spec: CodecConfig) -> None:
        super().__init__()
        widths = [spec.width << g for g in reversed(range(spec.groups))]
        self.input = OfCodes(spec.vocab, spec.stem, 1)
        self.groups = groups_of(spec, spec.stem, widths, (1, 3, 3, 3))
        self.output = nn.Conv2d(spec.width, 6, 1)

    def forward(self, shares: Tensor) -> Tensor:
        """Also of codes, (B, h, h) int64: what shares of 0 and 1 would give, by a look-up."""
        with no_autocast(shares.device):
            x = self.input(shares.to(wide(shares)) if shares.is_floating_point() else shares)
        for g, blocks in enumerate(self.groups):
            for block in blocks.children():
                x = block(x)
            if g < len(self.groups) - 1:
                x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        with no_autocast(x.device):
            out: Tensor = self.output(F.relu(x).to(wide(x)))
            return out

    def of_codes(self, codes: Tensor) -> Tensor:
        """(B, h, h) int64: the answer to whole codes."""
        out: Tensor = self(codes)
        return out


class Codec(nn.Module):
    """Encoder and decoder. `codec(x)`: the decoder's answer to the likeliest codes."""

    def __init__(self, spec: CodecConfig) -> None:
        super().__init__()
        self.spec = spec
        self.encoder, self.decoder = Encoder(spec), Decoder(spec)
        self.parameter_rules = RULES

    def units(self) -> list[nn.Module]:
        return [
            block
            for part in (self.encoder, self.decoder)
            for blocks in part.groups
            for block in blocks.children()
        ]

    @staticmethod
    def macs(spec: CodecConfig, count: Callable[..., int]) -> int:
        """Of encoder and decoder."""
        codec = Codec(spec)
        pixels = torch.empty(1, 3, spec.resolution, spec.resolution)
        codes = torch.empty(1, spec.vocab, spec.grid, spec.grid)
        return count(codec.encoder, pixels) + count(codec.decoder, codes)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder.of_codes(self.encoder(x).argmax(1))


# biases zero, weights N(0, 1 / fan in); the convolutions next to the codes and to the pixels that
# come out keep float32
FLOAT32 = r"encoder\.output|decoder\.input|decoder\.output"
RULES: Rules = (
    Rule(rf"({FLOAT32})\.bias", zeros, keep_float32=True),
    Rule(rf"({FLOAT32})\.weight", normal(lambda shape: fan_in(shape) ** -0.5), keep_float32=True),
    Rule(r".*bias", zeros),
    Rule(r".*", normal(lambda shape: fan_in(shape) ** -0.5)),
)
