"""DINO's hyperparameters (Caron et al. 2021). Standard library only."""

from dataclasses import dataclass, field
from typing import ClassVar

from vtx_scale.specs.network import Backbone, Network
from vtx_scale.specs.objective import ObjectiveSpec
from vtx_scale.specs.resnet import ResNetConfig
from vtx_scale.specs.spec import Spec
from vtx_scale.specs.supervised import Pixels
from vtx_scale.specs.vit import ViTConfig


@dataclass(frozen=True, kw_only=True)
class Crops(Spec):
    """Two global crops and `locals` local ones of one decode,
    each with its own flips and colours.
    """

    local_size: int = 96  # pixels of a side of a small crop
    locals: int = 8  # small crops of a picture
    # areas of the two large crops, shares of the picture
    global_scale: tuple[float, float] = (0.4, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.4)  # areas of the small crops
    flip: float = 0.5  # the share of crops that are mirrored
    # how far colours are changed: brightness, contrast, saturation, hue
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    jitter_share: float = 0.8  # the share of crops whose colours are changed
    grey: float = 0.2  # the share of crops without colours
    # the share of blurred ones: first large crop, second, small ones
    blur: tuple[float, float, float] = (1.0, 0.1, 0.5)
    solarise: float = 0.2  # the share of second large crops that are solarised

    def faults(self) -> list[str]:
        found = []
        if self.locals < 0:
            found.append(f"locals={self.locals}: give 0 or more crops.")
        if self.local_size < 2:
            found.append(f"local_size={self.local_size}: give crops of 2 pixels or more.")
        for name in ("global_scale", "local_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                found.append(
                    f"{name}={low},{high}: give two shares of the area, the smaller first."
                )
        return found


@dataclass(frozen=True, kw_only=True)
class DinoConfig(ObjectiveSpec):
    """A student matches its own moving average across crops of one picture. Schedules count steps.

    `crops` says how pictures are cut and flipped; of `data` the ratio counts.
    """

    build: ClassVar[str] = "vtx_scale.objectives.dino:Dino"
    # bicubic of an evaluation; training is always bicubic
    data_fields: ClassVar[tuple[str, ...]] = ("ratio", "bicubic", "centre", "decode")
    places: ClassVar[tuple[str, ...]] = ("student.net.", "teacher.net.")

    net: Backbone
    crops: Crops = field(default_factory=Crops)
    prototypes: int = 65_536  # outputs of the head
    hidden: int = 2_048  # width of the head's hidden layers
    bottleneck: int = 256  # width of the head before its last layer
    head_norm: bool = False  # batch norm in the head
    fixed_gain: bool = True  # the last, weight-normed layer learns no gain
    frozen: int = 0  # steps at the beginning at which the last layer rests
    student_temperature: float = 0.1  # of the student's softmax
    teacher_temperature: float = 0.04  # of the teacher's softmax, when it is warm
    warm_temperature: float = 0.04  # where the teacher's temperature starts
    warm_steps: int = 0  # until the teacher's temperature is there, linearly
    centre_momentum: float = 0.9  # what the teacher's centre keeps of itself at a step
    momentum: float = 0.996  # of the teacher; to 1 on half a cosine
    last_blocks: int = 4  # a linear probe sees the class tokens of so many
    patch_mean: bool = False  # a linear probe sees the mean of the last patches too
    # mean and deviation that pictures are brought to: of imagenet, clip, or half
    pixels: Pixels = "imagenet"

    @property
    def batch_statistics(self) -> bool:
        return self.net.couples or self.head_norm

    def exported(self) -> tuple[str, Network]:
        return "teacher.net.", self.net

    def faults(self) -> list[str]:
        found = [
            f"{n}={getattr(self, n)}: give 1 or more."
            for n in ("prototypes", "hidden", "bottleneck", "last_blocks")
            if getattr(self, n) < 1
        ]
        found += [
            f"{n}={getattr(self, n)}: give 0 or more steps."
            for n in ("frozen", "warm_steps")
            if getattr(self, n) < 0
        ]
        found += [
            f"{n}={getattr(self, n)}: give a temperature above 0."
            for n in ("student_temperature", "teacher_temperature", "warm_temperature")
            if getattr(self, n) <= 0
        ]
        found += [
            f"{n}={getattr(self, n)}: give a share from 0 to 1."
            for n in ("momentum", "centre_momentum")
            if not 0 <= getattr(self, n) <= 1
        ]
        if self.net.attends and self.last_blocks > self.net.depth:
            found.append(f"last_blocks={self.last_blocks}: the network has {self.net.depth}.")
        if self.crops.locals and self.crops.local_size < self.net.least:
            found.append(
                f"crops.local_size={self.crops.local_size}: "
                f"a crop must hold a patch of {self.net.least} pixels."
            )
        if self.net.classes:
            found.append(
                f"net.classes={self.net.classes}: DINO learns without classes, leave it out."
            )
        return found


PUBLISHED = {
    "dino_vit_s16": "S/16",
    "dino_vit_s8": "S/8",
    "dino_vit_b16": "B/16",
    "dino_vit_b8": "B/8",
}


def published() -> dict[str, Backbone]:
    """Name -> spec of the network: they were released without a head."""
    return {
        **{name: ViTConfig.size(size) for name, size in PUBLISHED.items()},
        "dino_resnet50": ResNetConfig.size("50"),
    }
