"""CLIP's hyperparameters (Radford et al. 2021) and its published sizes. Standard library only."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from vtx_scale.specs.network import Backbone, Input, Network
from vtx_scale.specs.objective import ObjectiveSpec
from vtx_scale.specs.resnet import CLIP_RESNET_SIZES, ClipResNetConfig
from vtx_scale.specs.vit import ViTConfig

# name: image tower, its pixels; the text tower's width, depth, heads; embedding; activation.
# OpenAI's, then OpenCLIP's
CLIP_SIZES: dict[str, tuple[str, int, int, int, int, int, Literal["gelu", "quick_gelu"]]] = {
    "ViT-B/32": ("B/32", 224, 512, 12, 8, 512, "quick_gelu"),
    "ViT-B/16": ("B/16", 224, 512, 12, 8, 512, "quick_gelu"),
    "ViT-L/14": ("L/14", 224, 768, 12, 12, 768, "quick_gelu"),
    "ViT-L/14@336": ("L/14", 336, 768, 12, 12, 768, "quick_gelu"),
    "ViT-H/14": ("H/14", 224, 1024, 24, 16, 1024, "gelu"),
    "ViT-g/14": ("g/14", 224, 1024, 24, 16, 1024, "gelu"),
    "ViT-bigG/14": ("G/14", 224, 1280, 32, 20, 1280, "gelu"),
}
# width of the text tower
CLIP_RESNET_TEXTS = {"RN50": 512, "RN101": 512, "RN50x4": 640, "RN50x16": 768, "RN50x64": 1024}


@dataclass(frozen=True, kw_only=True)
class TextTowerConfig(Network):
    """The causal text transformer; pools at the end token."""

    build: ClassVar[str] = "vtx_scale.backbones.text:Text"
    alike: ClassVar[bool] = True

    width: int = 512  # of a token
    depth: int = 12  # blocks
    heads: int = 8  # of an attention
    context: int = 77  # tokens of a caption
    vocab: int = 49_408  # how many tokens there are
    activation: Literal["gelu", "gelu_tanh", "quick_gelu"] = "quick_gelu"  # of the hidden units

    def inputs(self) -> tuple[Input, ...]:
        return (((self.context,), "ids"),)


def image_tower(name: str, **changes: Any) -> ViTConfig:
    """A ViT in CLIP's form: no patch bias, a norm before the blocks, eps 1e-5, QuickGELU."""
    form = {
        "activation": "quick_gelu",
        "eps": 1e-5,
        "patch_bias": False,
        "pre_norm": True,
        "init": "clip",
    }
    return ViTConfig.size(name, **{**form, **changes})


@dataclass(frozen=True, kw_only=True)
class ClipConfig(ObjectiveSpec):
    """Two towers, one embedding space.

    `loss` "softmax" is CLIP's, "sigmoid" SigLIP's (Zhai et al. 2023).
    """

    build: ClassVar[str] = "vtx_scale.objectives.clip:Clip"
    interop: ClassVar[str] = "vtx_scale.interop.clip"
    data_fields: ClassVar[tuple[str, ...]] = (
        "crop",
        "ratio",
        "flip",
        "bicubic",
        "decode",
        "tokenizer",
        "caption",
    )
    vocabulary: ClassVar[str] = "text.vocab"
    pixels = "clip"

    image: Backbone
    text: TextTowerConfig
    embed: int = 512  # dimensions of the space that both towers share
    # softmax over all pairs, as CLIP, or sigmoid of each, as SigLIP
    loss: Literal["softmax", "sigmoid"] = "softmax"
    scale: float = 1 / 0.07  # where the logit scale starts
    scale_limit: float = 100.0  # the most that the logit scale may be

    @property
    def separable(self) -> bool:
        return False  # every slot is a negative of every other

    def faults(self) -> list[str]:
        found = []
        if self.image.projects and self.image.width != self.embed:
            found.append(
                f"image.embed={self.image.width}: it and embed={self.embed} are one space: "
                "set both to the same number."
            )
        if self.image.classes:
            found.append(
                f"image.classes={self.image.classes}: CLIP learns from captions, leave it out."
            )
        return found

    @staticmethod
    def size(name: str) -> "ClipConfig":
        """`ClipConfig.size("ViT-B/32")`, `ClipConfig.size("ViT-L/14@336")`,
        `ClipConfig.size("RN50x4")`.
        """
        if name in CLIP_RESNET_SIZES:
            resnet, width = ClipResNetConfig.size(name), CLIP_RESNET_TEXTS[name]
            return ClipConfig(
                image=resnet,
                text=TextTowerConfig(width=width, heads=width // 64),
                embed=resnet.embed,
            )
        image, pixels, width, depth, heads, embed, activation = CLIP_SIZES[name]
        return ClipConfig(
            image=image_tower(image, resolution=pixels, activation=activation),
            text=TextTowerConfig(width=width, depth=depth, heads=heads, activation=activation),
            embed=embed,
        )


PUBLISHED = {
    "clip_vit_b32": "ViT-B/32",
    "clip_vit_b16": "ViT-B/16",
    "clip_vit_l14": "ViT-L/14",
    "clip_vit_l14_336": "ViT-L/14@336",
    "clip_vit_h14": "ViT-H/14",
    "clip_vit_g14": "ViT-g/14",
    "clip_vit_bigg14": "ViT-bigG/14",
    "clip_rn50": "RN50",
    "clip_rn101": "RN101",
    "clip_rn50x4": "RN50x4",
    "clip_rn50x16": "RN50x16",
    "clip_rn50x64": "RN50x64",
}


def published() -> dict[str, ClipConfig]:
    """Name -> spec: both towers and the scale."""
    return {name: ClipConfig.size(size) for name, size in PUBLISHED.items()}
