"""Published models by name, whole: classifiers of 1000 classes, both towers and the scale. Standard library only."""

from vtx_scale.specs.backbones import ViT
from vtx_scale.specs.clip import Clip
from vtx_scale.specs.run import Spec

# The papers tell small from large by case (s and S, g and G); a name must do without.
VITS = {
    "vit_xs28": "s/28", "vit_xs16": "s/16",  # "s" of Zhai et al. 2022: between Ti and S
    "vit_ti16": "Ti/16",
    "vit_s32": "S/32", "vit_s16": "S/16", "vit_s14": "S/14", "vit_s8": "S/8",
    "vit_m16": "M/16",
    "vit_b32": "B/32", "vit_b28": "B/28", "vit_b16": "B/16", "vit_b14": "B/14", "vit_b8": "B/8",
    "vit_l32": "L/32", "vit_l16": "L/16", "vit_l14": "L/14",
    "vit_so400m14": "So400m/14",
    "vit_h16": "H/16", "vit_h14": "H/14",
    "vit_g14": "g/14", "vit_bigg14": "G/14", "vit_e14": "e/14",
}
CLIPS = {
    "clip_vit_b32": "ViT-B/32", "clip_vit_b16": "ViT-B/16", "clip_vit_l14": "ViT-L/14",
    "clip_vit_l14_336": "ViT-L/14@336", "clip_vit_h14": "ViT-H/14", "clip_vit_g14": "ViT-g/14",
    "clip_vit_bigg14": "ViT-bigG/14",
}


def published() -> dict[str, tuple[Spec, int]]:
    """Name -> (spec, pixels of a side)."""
    made: dict[str, tuple[Spec, int]] = {}
    for name, size in VITS.items():
        vit = ViT.size(size, classes=1000)
        made[name] = (vit, vit.resolution)
    for name, size in CLIPS.items():
        clip = Clip.size(size)
        made[name] = (clip, clip.image.resolution)
    return made
