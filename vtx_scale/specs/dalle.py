"""DALL-E's transformer (Ramesh et al. 2021, arXiv:2102.12092, B) and its sizes. Standard library only."""

from dataclasses import dataclass
from typing import ClassVar

from vtx_scale.specs.dvae import Codec
from vtx_scale.specs.run import Spec

# name: width, heads of 64, layers; those of 2.8B and 5.6B are not published as such, and fit what is
DALLE_SIZES: dict[str, tuple[int, int, int]] = {"2.8B": (1920, 30, 64), "5.6B": (2688, 42, 64), "12B": (3968, 62, 64)}


@dataclass(frozen=True, kw_only=True)
class TextToCodes(Spec):
    """A transformer over a caption's tokens and then a picture's codes, whose image attention is sparse."""

    build: ClassVar[str] = "vtx_scale.backbones.dalle:TextToCodes"

    width: int = 3968
    heads: int = 62
    depth: int = 64
    context: int = 256  # tokens of a caption
    vocab: int = 16_384  # of captions
    grid: int = 32  # codes of a side
    codes: int = 8_192
    reach: int = 5  # of the last layer's convolutional attention: 11 x 11

    @staticmethod
    def size(name: str, **changes) -> "TextToCodes":
        """`TextToCodes.size("12B")`."""
        width, heads, depth = DALLE_SIZES[name]
        return TextToCodes(**{"width": width, "heads": heads, "depth": depth, **changes})

    def faults(self) -> list[str]:
        found = []
        if self.heads < 1 or self.width % self.heads:
            found.append(f"heads={self.heads}: the width, {self.width}, must divide into them.")
        if min(self.context, self.grid, self.codes, self.depth) < 1 or self.reach < 0:
            found.append(f"context={self.context}: give context, grid, codes and depth of 1 or more, reach of 0 or more.")
        return found


@dataclass(frozen=True, kw_only=True)
class Dalle(Spec):
    """Captions and the codes that a trained discrete VAE gives their pictures, one after the other."""

    build: ClassVar[str] = "vtx_scale.objectives.dalle:Dalle"

    net: TextToCodes
    codec: Codec
    codec_from: str = "required"  # run folder of a dVAE, which says its network itself, or exported weights
    text_share: float = 1 / 8  # of the loss; the rest is the codes'
    merges_dropped: float = 0.1  # of a caption's merges in training (Provilkov et al. 2020)

    def faults(self) -> list[str]:
        found = []
        if not 0 <= self.text_share <= 1 or not 0 <= self.merges_dropped < 1:
            found.append(f"text_share={self.text_share}: text_share and merges_dropped are shares.")
        return found
