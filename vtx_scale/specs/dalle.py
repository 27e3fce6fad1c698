"""DALL-E's transformer (Ramesh et al. 2021, arXiv:2102.12092, B) and its sizes.

Standard library only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from vtx_scale.specs.dvae import CodecConfig
from vtx_scale.specs.network import Input, Network
from vtx_scale.specs.objective import PICTURES, ObjectiveSpec, Pretrained

# name: width, heads of 64, layers; those of 2.8B and 5.6B are not published as such,
# and fit what is
DALLE_SIZES: dict[str, tuple[int, int, int]] = {
    "2.8B": (1920, 30, 64),
    "5.6B": (2688, 42, 64),
    "12B": (3968, 62, 64),
}


@dataclass(frozen=True, kw_only=True)
class TextToCodesConfig(Network):
    """A transformer over a caption's tokens and then a picture's codes,
    whose image attention is sparse.
    """

    build: ClassVar[str] = "vtx_scale.backbones.dalle:TextToCodes"

    width: int = 3968  # of a token
    heads: int = 62  # of an attention
    depth: int = 64  # blocks
    context: int = 256  # tokens of a caption
    vocab: int = 16_384  # of captions
    grid: int = 32  # codes of a side
    codes: int = 8_192  # how many there are
    reach: int = 5  # of the last layer's convolutional attention: 5 is 11 x 11 codes

    @property
    def resolution(self) -> int:
        """Of the pictures behind its codes, each of which stands for 8 pixels of a
        side as published.
        """
        return 8 * self.grid

    def inputs(self) -> tuple[Input, ...]:
        return ((self.context,), "ids"), ((self.context,), "flags"), ((self.grid**2,), "ids")

    @staticmethod
    def size(name: str, **changes: Any) -> "TextToCodesConfig":
        """`TextToCodesConfig.size("12B")`."""
        width, heads, depth = DALLE_SIZES[name]
        return TextToCodesConfig(**{"width": width, "heads": heads, "depth": depth, **changes})

    def faults(self) -> list[str]:
        found = []
        if self.heads < 1 or self.width % self.heads:
            found.append(f"heads={self.heads}: the width, {self.width}, must divide into them.")
        if min(self.context, self.grid, self.codes, self.depth) < 1 or self.reach < 0:
            found.append(
                f"context={self.context}: give context, grid, codes and depth of 1 or more, "
                "reach of 0 or more."
            )
        return found


@dataclass(frozen=True, kw_only=True)
class DalleConfig(ObjectiveSpec):
    """Captions and the codes that a trained discrete VAE gives their pictures,
    one after the other.
    """

    build: ClassVar[str] = "vtx_scale.objectives.dalle:Dalle"
    data_fields: ClassVar[tuple[str, ...]] = (*PICTURES, "tokenizer", "caption")
    interop: ClassVar[str] = "vtx_scale.interop.dalle"
    pretrained: ClassVar[tuple[Pretrained, ...]] = (Pretrained("codec", smoke="dvae_dalle"),)
    coded_by: ClassVar[str] = "codec"
    vocabulary: ClassVar[str] = "net.vocab"
    needs: ClassVar[Mapping[str, str]] = {
        "codec_from": "learns from the codes of a discrete VAE: add objective.codec_from=RUN, "
        "a run folder or exported weights."
    }

    net: TextToCodesConfig
    codec: CodecConfig
    # run folder of a dVAE or of a DALL-E, which says the network itself, or exported weights;
    # left open it comes with init.from
    codec_from: str = "required"
    text_share: float = 1 / 8  # the captions' share of the loss; the rest is the codes'
    # the share of a caption's merges that are left out in training (Provilkov et al. 2020)
    merges_dropped: float = 0.1

    @property
    def resolution(self) -> int:
        return self.codec.resolution

    def faults(self) -> list[str]:
        found = []
        if not 0 <= self.text_share <= 1 or not 0 <= self.merges_dropped < 1:
            found.append(f"text_share={self.text_share}: text_share and merges_dropped are shares.")
        return found

    def misfits(self) -> list[str]:
        have, takes = (self.codec.grid, self.codec.vocab), (self.net.grid, self.net.codes)
        if have == takes:
            return []
        gives, wants = (f"{g} x {g} of {k} codes" for g, k in (have, takes))
        return [
            f"net.grid={self.net.grid}: the codec gives {gives} and the network takes {wants}: "
            f"set objective.net.grid={have[0]} objective.net.codes={have[1]}."
        ]


PUBLISHED = {"dalle_2b8": "2.8B", "dalle_5b6": "5.6B", "dalle_12b": "12B"}


def published() -> dict[str, TextToCodesConfig]:
    """Name -> spec of the transformer: its codec is dvae_dalle."""
    return {name: TextToCodesConfig.size(size) for name, size in PUBLISHED.items()}
