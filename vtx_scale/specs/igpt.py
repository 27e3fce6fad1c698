"""iGPT's hyperparameters (Chen et al. 2020) and its published sizes. Standard library only."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from vtx_scale.specs.network import Input, Network
from vtx_scale.specs.objective import PICTURES, ObjectiveSpec
from vtx_scale.specs.palette import count_colours

# name: width, depth, heads, side. The heads of XL are not published: as wide as S's here.
IGPT_SIZES: dict[str, tuple[int, int, int, int]] = {
    "S": (512, 24, 8, 32),
    "M": (1024, 36, 8, 32),
    "L": (1536, 48, 16, 32),
    "L@48": (1536, 48, 16, 48),
    "L@64": (1536, 48, 16, 64),
    "XL": (3072, 60, 48, 64),
}


@dataclass(frozen=True, kw_only=True)
class PixelGPTConfig(Network):
    """A transformer over the colours of a picture, row after row."""

    build: ClassVar[str] = "vtx_scale.backbones.igpt:PixelGPT"
    alike: ClassVar[bool] = True

    width: int = 512  # of a token
    depth: int = 24  # blocks
    heads: int = 8  # of an attention
    side: int = 32  # pixels of a side: a token each
    colours: int = 512  # of the palette: a token each
    causal: bool = True  # every pixel sees those before it; else all see all
    classes: int = 0  # outputs of a linear classifier on the mean over pixels; 0 for none
    classifier_bias: bool = False  # the authors' has none; run folders before 0.1 have one

    @property
    def resolution(self) -> int:
        return self.side

    def inputs(self) -> tuple[Input, ...]:
        return (((self.side**2,), "ids"),)

    @staticmethod
    def size(name: str, **changes: Any) -> "PixelGPTConfig":
        """`PixelGPTConfig.size("S")`, `PixelGPTConfig.size("L@48")`."""
        width, depth, heads, side = IGPT_SIZES[name]
        return PixelGPTConfig(
            **{"width": width, "depth": depth, "heads": heads, "side": side, **changes}
        )

    def faults(self) -> list[str]:
        found = []
        if self.heads < 1 or self.width % self.heads:
            found.append(f"heads={self.heads}: the width, {self.width}, must divide into them.")
        if self.side < 2 or self.colours < 2:
            found.append(f"side={self.side}: give 2 pixels or more, and 2 colours or more.")
        return found


@dataclass(frozen=True, kw_only=True)
class IgptConfig(ObjectiveSpec):
    """Which colour comes next (a causal net), or which one was hidden (a net that is not
    causal, as BERT)?
    """

    build: ClassVar[str] = "vtx_scale.objectives.igpt:Igpt"
    interop: ClassVar[str] = "vtx_scale.interop.igpt"
    data_fields: ClassVar[tuple[str, ...]] = PICTURES
    class_field: ClassVar[str] = "net.classes"
    needs: ClassVar[Mapping[str, str]] = {
        "palette": "sees pictures in the colours of a palette: "
        "add objective.palette=FILE ('vtx data palette' finds one) or objective.palette=cube."
    }

    net: PixelGPTConfig
    # 8 x 8 x 8 colours; or a file of colours, which run.json holds in hexadecimal
    palette: str = "cube"
    hidden: float = 0.15  # the chance of a pixel to be hidden from a net that is not causal
    generative: float = 1.0  # the weight of the colours' loss beside the classifier's
    layer: int | None = None  # the one whose input is the features; None for the middle of the net

    def faults(self) -> list[str]:
        found = []
        have = count_colours(self.palette)
        if have is not None and have != self.net.colours:
            found.append(
                f"net.colours={self.net.colours}: the palette has {have} colours: "
                f"add objective.net.colours={have}."
            )
        if not 0 < self.hidden <= 1:
            found.append(f"hidden={self.hidden}: give a chance above 0, up to 1.")
        if self.generative < 0 or (not self.generative and not self.net.classes):
            found.append(
                f"generative={self.generative}: give a weight of 0 or more, "
                "and 0 only beside a classifier."
            )
        if self.layer is not None and not 0 <= self.layer <= self.net.depth:
            found.append(f"layer={self.layer}: give a number from 0 to {self.net.depth}.")
        return found


PUBLISHED = {
    "igpt_s": "S",
    "igpt_m": "M",
    "igpt_l": "L",
    "igpt_l48": "L@48",
    "igpt_l64": "L@64",
    "igpt_xl": "XL",
}


def published() -> dict[str, PixelGPTConfig]:
    """Name -> spec of the transformer."""
    return {name: PixelGPTConfig.size(size) for name, size in PUBLISHED.items()}
