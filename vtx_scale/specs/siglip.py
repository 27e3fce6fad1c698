"""SigLIP's hyperparameters (Zhai et al. 2023, arXiv:2303.15343) and its published sizes.

Standard library only.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from vtx_scale.specs.network import Input, Network
from vtx_scale.specs.objective import ObjectiveSpec
from vtx_scale.specs.vit import VIT_SIZES, ViTConfig

# name: the size of both towers, the image's patch and pixels, the text's context and vocabulary
SIGLIP_SIZES: dict[str, tuple[str, int, int, int, int]] = {
    "B/16": ("B", 16, 224, 64, 32_000),
    "B/16@256": ("B", 16, 256, 64, 32_000),
    "B/16@384": ("B", 16, 384, 64, 32_000),
    "B/16@512": ("B", 16, 512, 64, 32_000),
    "L/16@256": ("L", 16, 256, 64, 32_000),
    "L/16@384": ("L", 16, 384, 64, 32_000),
    "So400m/14": ("So400m", 14, 224, 16, 32_000),
    "So400m/14@384": ("So400m", 14, 384, 64, 32_000),
    "B/16-i18n@256": ("B", 16, 256, 64, 250_000),
    "2-B/16": ("B", 16, 224, 64, 256_000),  # SigLIP 2 (Tschannen et al. 2025)
}


@dataclass(frozen=True, kw_only=True)
class SiglipTextConfig(Network):
    """The text transformer: every token sees every other; pools at the last position."""

    build: ClassVar[str] = "vtx_scale.backbones.text:SiglipText"
    alike: ClassVar[bool] = True

    width: int = 768  # of a token
    depth: int = 12  # blocks
    mlp: int = 3072  # hidden units of a block
    heads: int = 12  # of an attention
    context: int = 64  # tokens of a caption
    vocab: int = 32_000  # how many tokens there are
    embed: int = 768  # of the linear head
    activation: Literal["gelu", "gelu_tanh", "quick_gelu"] = "gelu_tanh"  # of the hidden units
    eps: float = 1e-6  # of the layer norms

    def inputs(self) -> tuple[Input, ...]:
        return (((self.context,), "ids"),)


@dataclass(frozen=True, kw_only=True)
class SiglipConfig(ObjectiveSpec):
    """Two towers, every pair a yes or no. The image has attention pooling and no projection:
    its width is the embedding's.
    """

    build: ClassVar[str] = "vtx_scale.objectives.siglip:Siglip"
    interop: ClassVar[str] = "vtx_scale.interop.siglip"
    data_fields: ClassVar[tuple[str, ...]] = (
        "flip",
        "bicubic",
        "decode",
        "tokenizer",
        "caption",
    )
    vocabulary: ClassVar[str] = "text.vocab"
    pixels = "half"

    image: ViTConfig
    text: SiglipTextConfig
    scale: float = 10.0  # where the logit scale starts
    bias: float = -10.0  # where the logit bias starts

    @property
    def separable(self) -> bool:
        return False  # every slot is a negative of every other

    def faults(self) -> list[str]:
        if self.image.width == self.text.embed and not self.image.classes:
            return []
        return [
            f"image.width={self.image.width}: it and text.embed={self.text.embed} are one space, "
            "and the image has no classes: set both to the same number, image.classes=0."
        ]

    @staticmethod
    def size(name: str) -> "SiglipConfig":
        """`SiglipConfig.size("B/16")`, `SiglipConfig.size("So400m/14@384")`."""
        letters, patch, pixels, context, vocab = SIGLIP_SIZES[name]
        width, depth, mlp, heads = VIT_SIZES[letters]
        image = ViTConfig.size(
            f"{letters}/{patch}",
            resolution=pixels,
            pool="map",
            class_token=False,
            activation="gelu_tanh",
        )
        return SiglipConfig(
            image=image,
            text=SiglipTextConfig(
                width=width,
                depth=depth,
                mlp=mlp,
                heads=heads,
                context=context,
                vocab=vocab,
                embed=width,
            ),
        )


PUBLISHED = {
    "siglip_vit_b16": "B/16",
    "siglip_vit_b16_256": "B/16@256",
    "siglip_vit_b16_384": "B/16@384",
    "siglip_vit_b16_512": "B/16@512",
    "siglip_vit_l16_256": "L/16@256",
    "siglip_vit_l16_384": "L/16@384",
    "siglip_so400m14": "So400m/14",
    "siglip_so400m14_384": "So400m/14@384",
    "siglip_vit_b16_i18n_256": "B/16-i18n@256",
    "siglip2_vit_b16": "2-B/16",
}


def published() -> dict[str, SiglipConfig]:
    """Name -> spec: both towers, scale and bias."""
    return {name: SiglipConfig.size(size) for name, size in PUBLISHED.items()}
