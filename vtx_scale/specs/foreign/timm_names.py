"""timm's architectures that a network here can be, and what their names mean.

Any other name is refused. What the weights' shapes show (width, depth, MLP, patch) is not told.
"""

from typing import Any

# heads of 64 channels, but for these
HEADS = {
    "test_vit": 2,
    "vit_base_patch16_gap_224": 16,
    "tiny": 3,
    "xsmall": 4,
    "small": 6,
    "medium": 8,
    "betwixt": 10,
    "base": 12,
    "large": 16,
    "huge": 16,
    "giant": 16,
    "giantopt": 16,
    "gigantic": 16,
    "so400m": 16,
    "plus": 14,
}
PLAIN = [
    "test_vit",
    *[f"vit_tiny_patch16_{n}" for n in (224, 384)],
    *[f"vit_small_patch{n}" for n in ("8_224", "16_224", "16_384", "32_224", "32_384")],
    *[f"vit_base_patch{n}" for n in ("8_224", "16_224", "16_384", "32_224", "32_384")],
    *[f"vit_large_patch{n}" for n in ("14_224", "16_224", "16_384", "32_224", "32_384")],
    *[f"vit_{x}_patch14_224" for x in ("huge", "giant", "gigantic")],
    *[f"deit_{x}_patch16_224" for x in ("tiny", "small", "base")],
    "deit_base_patch16_384",
]
DISTILLED = [
    *[f"deit_{x}_distilled_patch16_224" for x in ("tiny", "small", "base")],
    "deit_base_distilled_patch16_384",
]
CLIP = [
    *[f"vit_base_patch16_{x}" for x in ("clip_224", "clip_384", "plus_clip_240")],
    *[f"vit_base_patch32_clip_{n}" for n in (224, 256, 384, 448)],
    "vit_betwixt_patch32_clip_224",
    "vit_giant_patch14_clip_224",
    *[f"vit_gigantic_patch14_clip_{n}" for n in (224, 378)],
    *[f"vit_huge_patch14_clip_{n}" for n in (224, 336, 378)],
    *[f"vit_large_patch14_clip_{n}" for n in (224, 336)],
    *[f"vit_medium_patch{n}_clip_224" for n in (16, 32)],
    "vit_xsmall_patch16_clip_224",
]
CLIP_QUICK = [
    *[f"vit_base_patch{n}_clip_quickgelu_224" for n in (16, 32)],
    "vit_gigantic_patch14_clip_quickgelu_224",
    *[f"vit_huge_patch14_clip_quickgelu_{n}" for n in (224, 378)],
    *[f"vit_large_patch14_clip_quickgelu_{n}" for n in (224, 336)],
]
SIGLIP = [
    *[f"vit_base_patch16_siglip_{n}" for n in (224, 256, 384, 512)],
    *[f"vit_large_patch16_siglip_{n}" for n in (256, 384)],
    *[f"vit_so400m_patch14_siglip_{n}" for n in (224, 378, 384)],
]
SIGLIP_TANH = [
    "vit_base_patch32_siglip_256",
    *[f"vit_giantopt_patch16_siglip_{n}" for n in (256, 384)],
    "vit_large_patch16_siglip_512",
    *[f"vit_so400m_patch16_siglip_{n}" for n in (256, 384, 512)],
]
GAP = [
    "vit_base_patch16_gap_224",
    "vit_giant_patch16_gap_224",
    "vit_huge_patch14_gap_224",
    "vit_huge_patch16_gap_448",
    *[name.replace("siglip", "siglip_gap") for name in SIGLIP],
    *[f"vit_so400m_patch14_siglip_gap_{n}" for n in (448, 896)],
]
GAP_TANH = [name.replace("siglip", "siglip_gap") for name in SIGLIP_TANH]
AVERAGED = {"class_token": False, "global_pool": "avg", "fc_norm": False}
MAPPED = {"class_token": False, "global_pool": "map"}
NORMED = {"pre_norm": True, "eps": 1e-5}
# arguments that differ from VisionTransformer's own, `eps` for the one in its norm_layer
FORMS: tuple[tuple[list[str], dict[str, Any]], ...] = (
    (PLAIN, {}),
    (DISTILLED, {}),
    (CLIP, NORMED),
    (CLIP_QUICK, {**NORMED, "act_layer": "quick_gelu"}),
    (SIGLIP, MAPPED),
    (SIGLIP_TANH, {**MAPPED, "act_layer": "gelu_tanh"}),
    (GAP, AVERAGED),
    (GAP_TANH, {**AVERAGED, "act_layer": "gelu_tanh"}),
)
RESNETS = (
    *[f"resnet{n}" for n in (18, 26, 34, 50, 101, 152, 200)],
    "wide_resnet50_2",
    "wide_resnet101_2",
)


def vit_arguments(name: str) -> dict[str, Any] | None:
    """Those of a vision transformer that its shapes do not show; None for an unknown name."""
    name = name.partition(".")[0]  # a tag says what it was trained on
    for names, form in FORMS:
        if name in names:
            plus = "plus" if "_plus_" in name else name.split("_")[1]
            return {"num_heads": HEADS.get(name, HEADS.get(plus, 0)), "eps": 1e-6, **form}
    return None
