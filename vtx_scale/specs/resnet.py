"""Residual networks and their published sizes. Standard library only."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from vtx_scale.specs.run import Spec

# name: blocks of the four stages, kind, factor of the inner width
RESNET_SIZES: dict[str, tuple[tuple[int, ...], Literal["basic", "bottleneck"], int]] = {
    "18": ((2, 2, 2, 2), "basic", 1),
    "34": ((3, 4, 6, 3), "basic", 1),
    "50": ((3, 4, 6, 3), "bottleneck", 1),
    "101": ((3, 4, 23, 3), "bottleneck", 1),
    "152": ((3, 8, 36, 3), "bottleneck", 1),
    "wide 50-2": ((3, 4, 6, 3), "bottleneck", 2),
    "wide 101-2": ((3, 4, 23, 3), "bottleneck", 2),
}

# name: blocks of the four stages, width, pixels, embedding
CLIP_RESNET_SIZES: dict[str, tuple[tuple[int, ...], int, int, int]] = {
    "RN50": ((3, 4, 6, 3), 64, 224, 1024),
    "RN101": ((3, 4, 23, 3), 64, 224, 512),
    "RN50x4": ((4, 6, 10, 6), 80, 288, 640),
    "RN50x16": ((6, 8, 18, 8), 96, 384, 768),
    "RN50x64": ((3, 15, 36, 10), 128, 448, 1024),
}


@dataclass(frozen=True, kw_only=True)
class ResNet(Spec):
    """ResNet v1.5 (He et al. 2016) and wide ResNet (Zagoruyko & Komodakis 2016)."""

    build: ClassVar[str] = "vtx_scale.backbones.resnet:ResNet"

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    kind: Literal["basic", "bottleneck"] = "bottleneck"
    wide: int = 1  # factor of the width inside a block
    resolution: int = 224
    classes: int = 0  # of a linear classifier; 0 for none

    @property
    def width(self) -> int:
        """Of the features."""
        return 64 * 2 ** (len(self.blocks) - 1) * (4 if self.kind == "bottleneck" else 1)

    @staticmethod
    def size(name: str, **changes) -> "ResNet":
        """`ResNet.size("50", classes=1000)`, `ResNet.size("wide 50-2")`."""
        blocks, kind, wide = RESNET_SIZES[name]
        return ResNet(**{"blocks": blocks, "kind": kind, "wide": wide, **changes})


@dataclass(frozen=True, kw_only=True)
class ClipResNet(Spec):
    """CLIP's ResNet with attention pooling (Radford et al. 2021), into the embedding space of `embed` dimensions."""

    build: ClassVar[str] = "vtx_scale.backbones.clip_resnet:ClipResNet"

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64  # of the stem; the features have 32 times as many channels
    heads: int = 32  # of the attention pool
    resolution: int = 224
    embed: int = 1024

    @staticmethod
    def size(name: str, **changes) -> "ClipResNet":
        """`ClipResNet.size("RN50x4")`."""
        blocks, width, resolution, embed = CLIP_RESNET_SIZES[name]
        return ClipResNet(**{"blocks": blocks, "width": width, "heads": width // 2, "resolution": resolution,
                             "embed": embed, **changes})
