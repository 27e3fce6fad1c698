"""Size tables of the backbones. Standard library only."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from vtx_scale.specs.run import Spec

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


# name: blocks of each stage of the ResNet stem, patch on its feature map (Dosovitskiy et al. 2021, Steiner et al. 2022)
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
class ViT(Spec):
    """Vision transformer (Dosovitskiy et al. 2021); CLIP's has no patch bias and a norm before the blocks."""

    build: ClassVar[str] = "vtx_scale.backbones.vit:ViT"

    width: int = 768
    depth: int = 12
    mlp: int = 3072
    heads: int = 12
    patch: int = 16
    resolution: int = 224
    pool: Literal["tok", "gap", "map", "none"] = "tok"
    activation: Literal["gelu", "gelu_tanh", "quick_gelu"] = "gelu"
    eps: float = 1e-6
    class_token: bool = True
    patch_bias: bool = True
    pre_norm: bool = False  # CLIP's norm between positions and blocks
    classes: int = 0  # of a linear classifier; 0 for none
    representation: bool = False  # a layer with tanh before the classifier
    distilled: bool = False  # DeiT's second token, with a classifier of its own
    position_kind: Literal["learned", "sincos2d"] = "learned"
    stem: tuple[int, ...] | None = None  # blocks of each stage of a hybrid's ResNet stem; () is its root alone
    dropout: float = 0.0
    drop_path: float = 0.0  # of the last block; rises linearly from 0
    init: Literal["xavier", "truncated"] = "xavier"

    def faults(self) -> list[str]:
        found = [f"{n}={getattr(self, n)}: give 1 or more." for n in ("width", "depth", "mlp", "heads", "patch", "resolution")
                 if getattr(self, n) < 1]
        cell = self.patch * (1 if self.stem is None else 2 ** (max(1, len(self.stem)) + 1))
        if 0 < self.resolution < cell:
            found.append(f"resolution={self.resolution}: a picture must hold a patch of {cell} pixels.")
        if self.heads > 0 and self.width % self.heads:
            found.append(f"heads={self.heads}: give a divisor of the width, {self.width}.")
        if self.pool == "tok" and not self.class_token:
            found.append("class_token=False: pool=tok takes the class token; set pool=gap or pool=map.")
        if self.pool == "none" and self.classes:
            found.append("pool=none: a classifier needs one vector a picture; give tok, gap or map.")
        if self.distilled and (self.pool != "tok" or self.representation):
            found.append("distilled=True: it goes with pool=tok and without a representation layer.")
        if not 0 <= self.dropout < 1 or not 0 <= self.drop_path < 1:
            found.append(f"drop_path={self.drop_path}: give a share from 0 to below 1, as for dropout.")
        if self.position_kind == "sincos2d" and self.width % 4:
            found.append(f"width={self.width}: sincos2d positions need a multiple of 4.")
        return found

    @staticmethod
    def size(name: str, **changes) -> "ViT":
        """`ViT.size("B/16")`, `ViT.size("L/14", resolution=336)`, `ViT.size("R50+L/32")`."""
        letters, _, patch = name.rpartition("+")[2].partition("/")
        width, depth, mlp, heads = VIT_SIZES[letters]
        stem, cut = HYBRIDS[name] if "+" in name else (None, int(patch))
        return ViT(**{"width": width, "depth": depth, "mlp": mlp, "heads": heads, "patch": cut, "stem": stem, **changes})
