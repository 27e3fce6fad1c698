"""Residual networks and their published sizes. Standard library only."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from vtx_scale.specs.network import Backbone

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

# name: blocks of the four stages, channels of the stem, pixels, embedding
CLIP_RESNET_SIZES: dict[str, tuple[tuple[int, ...], int, int, int]] = {
    "RN50": ((3, 4, 6, 3), 64, 224, 1024),
    "RN101": ((3, 4, 23, 3), 64, 224, 512),
    "RN50x4": ((4, 6, 10, 6), 80, 288, 640),
    "RN50x16": ((6, 8, 18, 8), 96, 384, 768),
    "RN50x64": ((3, 15, 36, 10), 128, 448, 1024),
}


@dataclass(frozen=True, kw_only=True)
class ResNetConfig(Backbone):
    """ResNet v1.5 (He et al. 2016) and wide ResNet (Zagoruyko & Komodakis 2016)."""

    build: ClassVar[str] = "vtx_scale.backbones.resnet:ResNet"
    interop: ClassVar[str] = "vtx_scale.interop.resnet"

    blocks: tuple[int, ...] = (3, 4, 6, 3)  # of each stage
    kind: Literal["basic", "bottleneck"] = "bottleneck"  # two convolutions in a block, or three
    wide: int = 1  # factor of the width inside a block
    resolution: int = 224  # pixels of a side
    classes: int = 0  # outputs of a linear classifier; 0 for none

    @property
    def width(self) -> int:
        """Of the features."""
        return self.widths[-1]

    @property
    def strides(self) -> tuple[int, ...]:
        return tuple(4 << k for k in range(len(self.blocks)))

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(
            (64 << k) * (4 if self.kind == "bottleneck" else 1) for k in range(len(self.blocks))
        )

    @property
    def couples(self) -> bool:
        return True

    @staticmethod
    def size(name: str, **changes: Any) -> "ResNetConfig":
        """`ResNetConfig.size("50", classes=1000)`, `ResNetConfig.size("wide 50-2")`."""
        blocks, kind, wide = RESNET_SIZES[name]
        return ResNetConfig(**{"blocks": blocks, "kind": kind, "wide": wide, **changes})


@dataclass(frozen=True, kw_only=True)
class ClipResNetConfig(Backbone):
    """CLIP's ResNet with attention pooling (Radford et al. 2021),
    into the embedding space of `embed` dimensions.
    """

    build: ClassVar[str] = "vtx_scale.backbones.clip_resnet:ClipResNet"

    clip_tower: ClassVar[Literal["", "vit", "resnet"]] = "resnet"
    projects: ClassVar[bool] = True

    blocks: tuple[int, ...] = (3, 4, 6, 3)  # of each stage
    stem: int = 64  # channels of the stem; the map that is pooled has 32 times as many
    heads: int = 32  # of the attention pool
    resolution: int = 224  # pixels of a side
    embed: int = 1024  # dimensions of what the attention pool gives

    @property
    def width(self) -> int:
        """Of the embedding that the attention pool gives."""
        return self.embed

    @property
    def strides(self) -> tuple[int, ...]:
        return tuple(4 << k for k in range(len(self.blocks)))

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(4 * self.stem << k for k in range(len(self.blocks)))

    @property
    def couples(self) -> bool:
        return True

    def position_grid(self) -> tuple[int, int]:
        return self.resolution // 32, 1  # of its pool, whose first entry is the mean's

    def faults(self) -> list[str]:
        return (
            [f"classes={self.classes}: this network embeds, leave it out."] if self.classes else []
        )

    @staticmethod
    def size(name: str, **changes: Any) -> "ClipResNetConfig":
        """`ClipResNetConfig.size("RN50x4")`."""
        blocks, stem, resolution, embed = CLIP_RESNET_SIZES[name]
        return ClipResNetConfig(
            **{
                "blocks": blocks,
                "stem": stem,
                "heads": stem // 2,
                "resolution": resolution,
                "embed": embed,
                **changes,
            }
        )


PUBLISHED = {
    "resnet18": "18",
    "resnet34": "34",
    "resnet50": "50",
    "resnet101": "101",
    "resnet152": "152",
    "wide_resnet50_2": "wide 50-2",
    "wide_resnet101_2": "wide 101-2",
}


def published() -> dict[str, ResNetConfig]:
    """Name -> spec, with classifiers of 1000 classes."""
    return {name: ResNetConfig.size(size, classes=1000) for name, size in PUBLISHED.items()}
