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


@dataclass(frozen=True, kw_only=True)
class Masked(Spec):
    """Masked patches (Dosovitskiy et al. 2021, B.1.2): which of 512 colours is the mean of a patch that was hidden?"""

    build: ClassVar[str] = "vtx_scale.objectives.masked:Masked"

    net: ViT
    corrupted: float = 0.5  # of the patches; of these
    hidden: float = 0.8  # become the mask embedding
    swapped: float = 0.1  # another patch's of the picture; the rest stays
    pixels: Pixels = "half"
