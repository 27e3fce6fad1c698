"""Classification, plain and distilled, and the masked patches of the ViT paper.

Standard library only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from vtx_scale.specs.network import Backbone
from vtx_scale.specs.objective import PICTURES, ObjectiveSpec, Pretrained
from vtx_scale.specs.vit import ViTConfig

# how pixels are normalised: to [-1, 1], or by ImageNet's mean and deviation
Pixels = Literal["half", "imagenet"]


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig(ObjectiveSpec):
    """A network with `classes` learns labels: one a sample (softmax),
    or several (sigmoid, as on JFT).
    """

    build: ClassVar[str] = "vtx_scale.objectives.supervised:Supervised"
    data_fields: ClassVar[tuple[str, ...]] = PICTURES
    augmentations: ClassVar[tuple[str, ...]] = ("*",)
    class_field: ClassVar[str] = "net.classes"

    net: Backbone
    # softmax for one label a sample, sigmoid for several
    loss: Literal["softmax", "sigmoid"] = "softmax"
    smoothing: float = 0.0  # of softmax's targets
    labels: int = 1  # of a sample, at most
    head_bias: float = 0.0  # where the classifier's bias starts: -10 on JFT
    # mean and deviation that pictures are brought to: of imagenet, clip, or half
    pixels: Pixels = "half"

    def faults(self) -> list[str]:
        found = []
        if self.net.classes < 1:
            found.append(f"net.classes={self.net.classes}: give the number of classes.")
        if self.net.distilled:
            found.append(
                "net.distilled=True: a distillation token needs a teacher; use a distilled recipe."
            )
        if self.labels < 1 or (self.loss == "softmax" and self.labels > 1):
            found.append(
                f"labels={self.labels}: softmax takes one label a sample, sigmoid one or more."
            )
        if not 0 <= self.smoothing < 1 or (self.loss == "sigmoid" and self.smoothing):
            found.append(
                f"smoothing={self.smoothing}: give a share from 0 to below 1, "
                "and none with loss=sigmoid."
            )
        return found


@dataclass(frozen=True, kw_only=True)
class DistillConfig(ObjectiveSpec):
    """DeiT (Touvron et al. 2021): labels, and what a trained teacher says of the same pictures."""

    build: ClassVar[str] = "vtx_scale.objectives.distill:Distill"
    data_fields: ClassVar[tuple[str, ...]] = PICTURES
    augmentations: ClassVar[tuple[str, ...]] = ("*",)
    class_field: ClassVar[str] = "net.classes"
    pretrained: ClassVar[tuple[Pretrained, ...]] = (
        Pretrained("teacher", smoke="resnet18_imagenet"),
    )
    needs: ClassVar[Mapping[str, str]] = {
        "teacher_from": (
            "learns from a teacher: add objective.teacher_from=RUN, "
            "a run folder or exported weights."
        )
    }

    net: Backbone
    teacher: Backbone
    # run folder or exported weights; a run folder says its network itself
    teacher_from: str = "required"
    teacher_pixels: Pixels = "imagenet"  # as pixels, for the teacher
    kind: Literal["hard", "soft"] = "hard"  # the teacher's decisions, or its probabilities
    alpha: float = 0.5  # the teacher's share of the loss
    temperature: float = 1.0  # of both softmaxes where the kind is soft
    smoothing: float = 0.1  # of the labels' targets
    # mean and deviation that pictures are brought to: of imagenet, clip, or half
    pixels: Pixels = "imagenet"

    def faults(self) -> list[str]:
        found = []
        if self.net.classes < 1:
            found.append(f"net.classes={self.net.classes}: give the number of classes.")
        for name in ("alpha", "smoothing"):
            if not 0 <= getattr(self, name) <= 1:
                found.append(f"{name}={getattr(self, name)}: give a share from 0 to 1.")
        if self.temperature <= 0:
            found.append(f"temperature={self.temperature}: give a number above 0.")
        return found

    def misfits(self) -> list[str]:
        have, wanted = self.teacher.classes, self.net.classes
        if have == wanted:
            return []
        return [
            f"teacher.classes={have}: the teacher knows {have} classes and the student {wanted}: "
            "give a teacher that was trained on the same classes, or set objective.net.classes."
        ]


@dataclass(frozen=True, kw_only=True)
class MaskedConfig(ObjectiveSpec):
    """Masked patches (Dosovitskiy et al. 2021, B.1.2):
    which of 512 colours is the mean of a patch that was hidden?
    """

    build: ClassVar[str] = "vtx_scale.objectives.masked:Masked"
    data_fields: ClassVar[tuple[str, ...]] = PICTURES
    augmentations: ClassVar[tuple[str, ...]] = ("randaug_*",)

    net: ViTConfig
    corrupted: float = 0.5  # the share of patches that are to be guessed
    hidden: float = 0.8  # the share of these that become the mask embedding
    swapped: float = 0.1  # the share that becomes another patch of the picture; the rest stays
    # mean and deviation that pictures are brought to: of imagenet, clip, or half
    pixels: Pixels = "half"

    def faults(self) -> list[str]:
        found = []
        if not 0 < self.corrupted <= 1:
            found.append(f"corrupted={self.corrupted}: give a share above 0, up to 1.")
        if min(self.hidden, self.swapped) < 0 or self.hidden + self.swapped > 1:
            found.append(
                f"hidden={self.hidden}: hidden and swapped are shares whose sum is at most 1."
            )
        if self.net.classes:
            found.append(
                f"net.classes={self.net.classes}: colours are the classes here, leave it out."
            )
        if self.net.resolution % self.net.cell:
            found.append(
                f"net.resolution={self.net.resolution}: masked patches must cover the picture, "
                f"give a multiple of the {self.net.cell} pixels of a patch."
            )
        return found


# DeiT's, with 1000 classes: size and pixels
PUBLISHED_DEITS = {
    "deit_ti16_distilled": ("Ti/16", 224),
    "deit_s16_distilled": ("S/16", 224),
    "deit_b16_distilled": ("B/16", 224),
    "deit_b16_distilled_384": ("B/16", 384),
}
PUBLISHED_PLAIN = {
    "deit_ti16": ("Ti/16", 224),
    "deit_s16": ("S/16", 224),
    "deit_b16": ("B/16", 224),
    "deit_b16_384": ("B/16", 384),
}


def published() -> dict[str, ViTConfig]:
    """Name -> spec, with classifiers of 1000 classes."""
    vits = {
        name: ViTConfig.size(size, classes=1000, distilled=True, resolution=pixels)
        for name, (size, pixels) in PUBLISHED_DEITS.items()
    }
    plain = {
        name: ViTConfig.size(size, classes=1000, resolution=pixels)
        for name, (size, pixels) in PUBLISHED_PLAIN.items()
    }
    return vits | plain
