"""VirTex's hyperparameters (Desai & Johnson 2021, arXiv:2006.06666) and its published sizes.

Standard library only.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from vtx_scale.specs.network import Backbone
from vtx_scale.specs.objective import ObjectiveSpec
from vtx_scale.specs.resnet import ResNetConfig

# name: trunk, layers and width of a decoder
VIRTEX_SIZES: dict[str, tuple[str, int, int]] = {
    "R50-L1-H512": ("50", 1, 512),
    "R50-L1-H768": ("50", 1, 768),
    "R50-L1-H1024": ("50", 1, 1024),
    "R50-L1-H2048": ("50", 1, 2048),
    "R50-L2-H1024": ("50", 2, 1024),
    "R50-L3-H1024": ("50", 3, 1024),
    "R50-L4-H1024": ("50", 4, 1024),
    "R50w2x-L1-H1024": ("wide 50-2", 1, 1024),
    "R101-L1-H1024": ("101", 1, 1024),
}


@dataclass(frozen=True, kw_only=True)
class VirtexConfig(ObjectiveSpec):
    """A ResNet learns from captions, which decoders write forwards and backwards while they
    look at its map.
    """

    build: ClassVar[str] = "vtx_scale.objectives.virtex:Virtex"
    data_fields: ClassVar[tuple[str, ...]] = (
        "crop",
        "ratio",
        "flip",
        "bicubic",
        "decode",
        "centre",
        "tokenizer",
        "caption",
    )
    vocabulary: ClassVar[str] = "vocab"
    pixels = "imagenet"

    net: Backbone
    width: int = 1024  # of the decoders, whose heads are of 64
    depth: int = 1  # blocks of a decoder
    context: int = 30  # tokens, start and end included
    vocab: int = 10_000  # how many tokens there are
    dropout: float = 0.1  # the share of values that are dropped in training
    # captions are written forwards and backwards, or forwards alone
    directions: Literal["both", "forward"] = "both"
    # how far colours are changed: brightness, contrast, saturation, hue
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    jitter_share: float = 0.8  # the share of pictures whose colours are changed
    # pictures may be flipped; then left and right change places in the caption
    mirrored: bool = True
    beam: int = 5  # captions that are followed when one is written

    @staticmethod
    def size(name: str, **changes: Any) -> "VirtexConfig":
        """`VirtexConfig.size("R50-L1-H1024")`."""
        trunk, depth, width = VIRTEX_SIZES[name]
        return VirtexConfig(
            **{"net": ResNetConfig.size(trunk), "depth": depth, "width": width, **changes}
        )

    @property
    def heads(self) -> int:
        return max(1, self.width // 64)

    def faults(self) -> list[str]:
        found = []
        if self.width % self.heads:
            found.append(f"width={self.width}: give a multiple of 64, or less than 128.")
        if self.context < 3 or self.depth < 1 or self.beam < 1:
            found.append(
                f"context={self.context}: give 3 tokens or more, a depth and a beam of 1 or more."
            )
        if not 0 <= self.dropout < 1:
            found.append(f"dropout={self.dropout}: give a share from 0 to below 1.")
        if self.net.classes:
            found.append(
                f"net.classes={self.net.classes}: VirTex learns from captions, leave it out."
            )
        if not self.net.strides:
            found.append(
                "net: VirTex looks at the last map of a pyramid, which this network has not: "
                "give another."
            )
        return found


PUBLISHED = {
    "virtex_r50_h512": "R50-L1-H512",
    "virtex_r50_h768": "R50-L1-H768",
    "virtex_r50": "R50-L1-H1024",
    "virtex_r50_h2048": "R50-L1-H2048",
    "virtex_r50_l2": "R50-L2-H1024",
    "virtex_r50_l3": "R50-L3-H1024",
    "virtex_r50_l4": "R50-L4-H1024",
    "virtex_r50w2x": "R50w2x-L1-H1024",
    "virtex_r101": "R101-L1-H1024",
}


def published() -> dict[str, VirtexConfig]:
    """Name -> spec: trunk and decoders."""
    return {name: VirtexConfig.size(size) for name, size in PUBLISHED.items()}
