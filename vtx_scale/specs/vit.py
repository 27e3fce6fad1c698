"""Vision transformers and their sizes. Standard library only."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from vtx_scale.specs.network import Backbone

# name: width, depth, mlp, heads (big_vision's decode_variant; docs name the papers)
VIT_SIZES: dict[str, tuple[int, int, int, int]] = {
    "s": (256, 6, 1024, 8),
    "Ti": (192, 12, 768, 3),
    "S": (384, 12, 1536, 6),
    "M": (512, 12, 2048, 8),
    "B": (768, 12, 3072, 12),
    "L": (1024, 24, 4096, 16),
    "So400m": (1152, 27, 4304, 16),
    "H": (1280, 32, 5120, 16),
    "g": (1408, 40, 6144, 16),
    "G": (1664, 48, 8192, 16),
    "e": (1792, 56, 15360, 16),
}


# name: blocks of each stage of the ResNet stem, patch on its feature map (Dosovitskiy
# et al. 2021, Steiner et al. 2022)
HYBRIDS: dict[str, tuple[tuple[int, ...], int]] = {
    "R+Ti/16": ((), 8),
    "R26+S/32": ((2, 2, 2, 2), 1),
    "R26+B/32": ((2, 2, 2, 2), 1),
    "R50+B/16": ((3, 4, 9), 1),
    "R50+B/32": ((3, 4, 6, 3), 1),
    "R50+L/16": ((3, 4, 9), 1),
    "R50+L/32": ((3, 4, 6, 3), 1),
}


@dataclass(frozen=True, kw_only=True)
class ViTConfig(Backbone):
    """Vision transformer (Dosovitskiy et al. 2021); CLIP's has no patch bias and a norm
    before the blocks.
    """

    build: ClassVar[str] = "vtx_scale.backbones.vit:ViT"
    interop: ClassVar[str] = "vtx_scale.interop.vit"
    clip_tower: ClassVar[Literal["", "vit", "resnet"]] = "vit"
    training_only: ClassVar[tuple[str, ...]] = ("init", "dropout", "drop_path")
    alike: ClassVar[bool] = True

    width: int = 768  # of a token
    depth: int = 12  # blocks
    mlp: int = 3072  # hidden units of a block
    heads: int = 12  # of an attention
    patch: int = 16  # pixels of a side of a patch
    resolution: int = 224  # pixels of a side
    # what stands for the picture: the class token, the mean, attention, or nothing
    pool: Literal["tok", "gap", "map", "none"] = "tok"
    activation: Literal["gelu", "gelu_tanh", "quick_gelu"] = "gelu"  # of the hidden units
    eps: float = 1e-6  # of the layer norms
    class_token: bool = True  # whether there is a class token
    patch_bias: bool = True  # whether the patches' projection has one
    pre_norm: bool = False  # CLIP's norm between positions and blocks
    classes: int = 0  # outputs of a linear classifier; 0 for none
    representation: bool = False  # a layer with tanh before the classifier
    distilled: bool = False  # DeiT's second token, with a classifier of its own
    position_kind: Literal["learned", "sincos2d"] = "learned"  # learned, or sines of row and column
    # blocks of each stage of a hybrid's ResNet stem; () is its root alone, None no stem
    stem: tuple[int, ...] | None = None
    dropout: float = 0.0  # the share of values that are dropped in training
    # the chance that a residual path is left out: of the last block, rising from 0
    drop_path: float = 0.0
    init: Literal["xavier", "truncated", "clip"] = "xavier"  # how the first values are drawn

    def faults(self) -> list[str]:
        found = [
            f"{n}={getattr(self, n)}: give 1 or more."
            for n in ("width", "depth", "mlp", "heads", "patch", "resolution")
            if getattr(self, n) < 1
        ]
        if 0 < self.resolution < self.cell:
            found.append(
                f"resolution={self.resolution}: a picture must hold a patch of {self.cell} pixels."
            )
        if self.heads > 0 and self.width % self.heads:
            found.append(f"heads={self.heads}: give a divisor of the width, {self.width}.")
        if self.pool == "tok" and not self.class_token:
            found.append(
                "class_token=False: pool=tok takes the class token; set pool=gap or pool=map."
            )
        if self.pool == "none" and self.classes:
            found.append(
                "pool=none: a classifier needs one vector a picture; give tok, gap or map."
            )
        if self.distilled and (self.pool != "tok" or self.representation):
            found.append(
                "distilled=True: it goes with pool=tok and without a representation layer."
            )
        if not 0 <= self.dropout < 1 or not 0 <= self.drop_path < 1:
            found.append(
                f"drop_path={self.drop_path}: give a share from 0 to below 1, as for dropout."
            )
        if self.position_kind == "sincos2d" and self.width % 4:
            found.append(f"width={self.width}: sincos2d positions need a multiple of 4.")
        return found

    @property
    def cell(self) -> int:
        """Pixels of a side that a token stands for."""
        return self.patch * (1 if self.stem is None else 2 ** (max(1, len(self.stem)) + 1))

    @property
    def extra(self) -> int:
        """Tokens before the patches."""
        return int(self.class_token) + int(self.distilled)

    @property
    def least(self) -> int:
        return self.cell

    @property
    def strides(self) -> tuple[int, ...]:
        return (self.cell,)

    @property
    def widths(self) -> tuple[int, ...]:
        return (self.width,)

    @property
    def attends(self) -> bool:
        return self.class_token

    def calm(self) -> "ViTConfig":
        return replace(self, drop_path=0.0, dropout=0.0)

    def headless(self) -> "ViTConfig":
        return replace(self, classes=0, representation=False)

    def position_grid(self) -> tuple[int, int] | None:
        return (
            (self.resolution // self.cell, self.extra) if self.position_kind == "learned" else None
        )

    @staticmethod
    def size(name: str, **changes: Any) -> "ViTConfig":
        """`ViTConfig.size("B/16")`, `ViTConfig.size("L/14", resolution=336)`,
        `ViTConfig.size("R50+L/32")`.
        """
        letters, _, patch = name.rpartition("+")[2].partition("/")
        width, depth, mlp, heads = VIT_SIZES[letters]
        stem, cut = HYBRIDS[name] if "+" in name else (None, int(patch))
        return ViTConfig(
            **{
                "width": width,
                "depth": depth,
                "mlp": mlp,
                "heads": heads,
                "patch": cut,
                "stem": stem,
                **changes,
            }
        )


# The papers tell small from large by case (s and S, g and G); a name must do without.
PUBLISHED = {
    "vit_xs28": "s/28",
    "vit_xs16": "s/16",  # "s" of Zhai et al. 2022: between Ti and S
    "vit_ti16": "Ti/16",
    "vit_s32": "S/32",
    "vit_s16": "S/16",
    "vit_s14": "S/14",
    "vit_s8": "S/8",
    "vit_m16": "M/16",
    "vit_b32": "B/32",
    "vit_b28": "B/28",
    "vit_b16": "B/16",
    "vit_b14": "B/14",
    "vit_b8": "B/8",
    "vit_l32": "L/32",
    "vit_l16": "L/16",
    "vit_l14": "L/14",
    "vit_so400m14": "So400m/14",
    "vit_h16": "H/16",
    "vit_h14": "H/14",
    "vit_g14": "g/14",
    "vit_bigg14": "G/14",
    "vit_e14": "e/14",
}
PUBLISHED_HYBRIDS = {
    "vit_r_ti16": "R+Ti/16",
    "vit_r26_s32": "R26+S/32",
    "vit_r26_b32": "R26+B/32",
    "vit_r50_b16": "R50+B/16",
    "vit_r50_b32": "R50+B/32",
    "vit_r50_l16": "R50+L/16",
    "vit_r50_l32": "R50+L/32",
}


def published() -> dict[str, ViTConfig]:
    """Name -> spec, with classifiers of 1000 classes."""
    specs = {name: ViTConfig.size(size, classes=1000) for name, size in PUBLISHED.items()}
    for name, size in PUBLISHED_HYBRIDS.items():
        for pixels in (224, 384):
            key = name if pixels == 224 else f"{name}_384"
            specs[key] = ViTConfig.size(size, classes=1000, resolution=pixels)
    return specs
