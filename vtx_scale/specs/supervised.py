"""Classification, plain and distilled, and the masked patches of the ViT paper. Standard library only."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from vtx_scale.specs.backbones import ViT
from vtx_scale.specs.resnet import ResNet
from vtx_scale.specs.run import Spec

Pixels = Literal["half", "imagenet"]  # how pixels are normalised: to [-1, 1], or by ImageNet's mean and deviation


@dataclass(frozen=True, kw_only=True)
class Supervised(Spec):
    """A network with `classes` learns labels: one a sample (softmax), or several (sigmoid, as on JFT)."""

    build: ClassVar[str] = "vtx_scale.objectives.supervised:Supervised"

    net: ViT | ResNet
    loss: Literal["softmax", "sigmoid"] = "softmax"
    smoothing: float = 0.0  # of softmax's targets
    labels: int = 1  # at most, of a sample
    head_bias: float = 0.0  # where the classifier's bias starts: -10 on JFT
    pixels: Pixels = "half"

    def faults(self) -> list[str]:
        found = []
        if self.net.classes < 1:
            found.append(f"net.classes={self.net.classes}: give the number of classes.")
        if getattr(self.net, "distilled", False):
            found.append("net.distilled=True: a distillation token needs a teacher; use a distilled recipe.")
        if self.labels < 1 or (self.loss == "softmax" and self.labels > 1):
            found.append(f"labels={self.labels}: softmax takes one label a sample, sigmoid one or more.")
        if not 0 <= self.smoothing < 1 or (self.loss == "sigmoid" and self.smoothing):
            found.append(f"smoothing={self.smoothing}: give a share from 0 to below 1, and none with loss=sigmoid.")
        return found


@dataclass(frozen=True, kw_only=True)
class Distill(Spec):
    """DeiT (Touvron et al. 2021): labels, and what a trained teacher says of the same pictures."""

    build: ClassVar[str] = "vtx_scale.objectives.distill:Distill"

    net: ViT
    teacher: ViT | ResNet
    teacher_from: str = "required"  # run folder or exported weights; a run folder says its network itself
    teacher_pixels: Pixels = "imagenet"
    kind: Literal["hard", "soft"] = "hard"
    alpha: float = 0.5  # the teacher's share of the loss
    temperature: float = 1.0  # of soft
    smoothing: float = 0.1
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


@dataclass(frozen=True, kw_only=True)
class Masked(Spec):
    """Masked patches (Dosovitskiy et al. 2021, B.1.2): which of 512 colours is the mean of a patch that was hidden?"""

    build: ClassVar[str] = "vtx_scale.objectives.masked:Masked"

    net: ViT
    corrupted: float = 0.5  # of the patches; of these
    hidden: float = 0.8  # become the mask embedding
    swapped: float = 0.1  # another patch's of the picture; the rest stays
    pixels: Pixels = "half"

    def faults(self) -> list[str]:
        found = []
        if not 0 < self.corrupted <= 1:
            found.append(f"corrupted={self.corrupted}: give a share above 0, up to 1.")
        if min(self.hidden, self.swapped) < 0 or self.hidden + self.swapped > 1:
            found.append(f"hidden={self.hidden}: hidden and swapped are shares whose sum is at most 1.")
        if self.net.classes:
            found.append(f"net.classes={self.net.classes}: colours are the classes here, leave it out.")
        return found
