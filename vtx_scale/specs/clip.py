"""CLIP's hyperparameters (Radford et al. 2021). Standard library only."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from vtx_scale.specs.backbones import ViT
from vtx_scale.specs.run import Spec


@dataclass(frozen=True, kw_only=True)
class TextTower(Spec):
    """The causal text transformer; pools at the end token."""

    build: ClassVar[str] = "vtx_scale.backbones.text:Text"

    width: int = 512
    depth: int = 12
    heads: int = 8
    context: int = 77
    vocab: int = 49_408
    activation: Literal["gelu", "gelu_tanh", "quick_gelu"] = "quick_gelu"


@dataclass(frozen=True, kw_only=True)
class Clip(Spec):
    """Two towers, one embedding space. `loss` "softmax" is CLIP's, "sigmoid" SigLIP's (Zhai et al. 2023)."""

    build: ClassVar[str] = "vtx_scale.objectives.clip:Clip"

    image: ViT
    text: TextTower
    embed: int = 512
    loss: Literal["softmax", "sigmoid"] = "softmax"
    scale: float = 1 / 0.07  # where the logit scale starts
    scale_limit: float = 100.0
