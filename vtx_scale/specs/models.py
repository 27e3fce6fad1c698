"""Published models by name, whole: classifiers of 1000 classes, both towers and the scale. Standard library only."""

from vtx_scale.specs.backbones import ViT
from vtx_scale.specs.clip import Clip
from vtx_scale.specs.dalle import TextToCodes
from vtx_scale.specs.dvae import Codec
from vtx_scale.specs.igpt import PixelGPT
from vtx_scale.specs.resnet import ResNet
from vtx_scale.specs.run import Spec
from vtx_scale.specs.siglip import Siglip
from vtx_scale.specs.virtex import Virtex

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
    "clip_rn50": "RN50", "clip_rn101": "RN101", "clip_rn50x4": "RN50x4", "clip_rn50x16": "RN50x16", "clip_rn50x64": "RN50x64",
}
RESNETS = {
    "resnet18": "18", "resnet34": "34", "resnet50": "50", "resnet101": "101", "resnet152": "152",
    "wide_resnet50_2": "wide 50-2", "wide_resnet101_2": "wide 101-2",
}
SIGLIPS = {
    "siglip_vit_b16": "B/16", "siglip_vit_b16_256": "B/16@256", "siglip_vit_b16_384": "B/16@384",
    "siglip_vit_b16_512": "B/16@512", "siglip_vit_l16_256": "L/16@256", "siglip_vit_l16_384": "L/16@384",
    "siglip_so400m14": "So400m/14", "siglip_so400m14_384": "So400m/14@384", "siglip_vit_b16_i18n_256": "B/16-i18n@256",
    "siglip2_vit_b16": "2-B/16",
}
DEITS = {"deit_ti16_distilled": ("Ti/16", 224), "deit_s16_distilled": ("S/16", 224), "deit_b16_distilled": ("B/16", 224),
         "deit_b16_distilled_384": ("B/16", 384)}

DEITS_PLAIN = {"deit_ti16": ("Ti/16", 224), "deit_s16": ("S/16", 224), "deit_b16": ("B/16", 224), "deit_b16_384": ("B/16", 384)}
HYBRIDS = {
    "vit_r_ti16": "R+Ti/16", "vit_r26_s32": "R26+S/32", "vit_r26_b32": "R26+B/32", "vit_r50_b16": "R50+B/16",
    "vit_r50_b32": "R50+B/32", "vit_r50_l16": "R50+L/16", "vit_r50_l32": "R50+L/32",
}
IGPTS = {"igpt_s": "S", "igpt_m": "M", "igpt_l": "L", "igpt_l48": "L@48", "igpt_l64": "L@64", "igpt_xl": "XL"}
VIRTEXES = {
    "virtex_r50_h512": "R50-L1-H512", "virtex_r50_h768": "R50-L1-H768", "virtex_r50": "R50-L1-H1024",
    "virtex_r50_h2048": "R50-L1-H2048", "virtex_r50_l2": "R50-L2-H1024", "virtex_r50_l3": "R50-L3-H1024",
    "virtex_r50_l4": "R50-L4-H1024", "virtex_r50w2x": "R50w2x-L1-H1024", "virtex_r101": "R101-L1-H1024",
}
DALLES = {"dalle_2b8": "2.8B", "dalle_5b6": "5.6B", "dalle_12b": "12B"}  # the transformers; their codec is dvae_dalle
DINOS = {"dino_vit_s16": "S/16", "dino_vit_s8": "S/8", "dino_vit_b16": "B/16", "dino_vit_b8": "B/8"}  # released without a head


def published() -> dict[str, tuple[Spec, int]]:
    """Name -> (spec, pixels of a side)."""
    made: dict[str, tuple[Spec, int]] = {}
    for name, size in VITS.items():
        vit = ViT.size(size, classes=1000)
        made[name] = (vit, vit.resolution)
    for name, size in RESNETS.items():
        resnet = ResNet.size(size, classes=1000)
        made[name] = (resnet, resnet.resolution)
    for name, size in CLIPS.items():
        clip = Clip.size(size)
        made[name] = (clip, clip.image.resolution)
    for name, size in SIGLIPS.items():
        siglip = Siglip.size(size)
        made[name] = (siglip, siglip.image.resolution)
    for name, (size, pixels) in DEITS.items():
        made[name] = (ViT.size(size, classes=1000, distilled=True, resolution=pixels), pixels)
    for name, (size, pixels) in DEITS_PLAIN.items():
        made[name] = (ViT.size(size, classes=1000, resolution=pixels), pixels)
    for name, size in HYBRIDS.items():
        for pixels in (224, 384):
            made[name if pixels == 224 else f"{name}_384"] = (ViT.size(size, classes=1000, resolution=pixels), pixels)
    for name, size in DINOS.items():
        made[name] = (ViT.size(size), 224)
    made["dino_resnet50"] = (ResNet.size("50"), 224)
    for name, size in IGPTS.items():
        igpt = PixelGPT.size(size)
        made[name] = (igpt, igpt.side)
    for name, size in VIRTEXES.items():
        virtex = Virtex.size(size)
        made[name] = (virtex, virtex.net.resolution)
    made["dvae_dalle"] = (Codec(), Codec().resolution)
    for name, size in DALLES.items():
        made[name] = (TextToCodes.size(size), 256)
    return made
