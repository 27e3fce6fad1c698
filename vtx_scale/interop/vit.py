"""ViT to and from transformers' ViT, DeiT and SiglipVisionModel, and timm's VisionTransformer.

The tables of names come first, then what each library lacks and what its config says, then export
and import. timm's names are those of DeiT's and DINO's own checkpoints too. transformers reads and
writes files by the names that its version 4 had, and so does this file; it also knows the names
that version 5 has in memory.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vtx_scale.blocks.position import sincos2d
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.interop.clip import TRANSFORMERS_BLOCK, mlp_ratio
from vtx_scale.interop.files import PixelForm, read_foreign, spec_json, write_folder
from vtx_scale.interop.rename import Line, from_foreign, to_foreign, under
from vtx_scale.specs.vit import ViTConfig

Triple = tuple[float, ...]  # of the channels

# transformers' names
ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}
TRANSFORMERS_STEM = [
    Line("patch.{p}", "embeddings.patch_embeddings.projection.{p}"),
    Line("cls_token", "embeddings.cls_token"),
    Line("dist_token", "embeddings.distillation_token"),
    Line("positions", "embeddings.position_embeddings"),
    Line("norm.{p}", "layernorm.{p}"),
]
TRANSFORMERS = [
    *TRANSFORMERS_STEM,
    *under(
        "blocks.{n}.",
        "encoder.layer.{n}.",
        [
            Line("norm1.{p}", "layernorm_before.{p}"),
            Line("attn.qkv.{p}", "attention.attention.{w}.{p}"),
            Line("attn.proj.{p}", "attention.output.dense.{p}"),
            Line("norm2.{p}", "layernorm_after.{p}"),
            Line("mlp.fc1.{p}", "intermediate.dense.{p}"),
            Line("mlp.fc2.{p}", "output.dense.{p}"),
        ],
    ),
]
TRANSFORMERS_5 = [
    *TRANSFORMERS_STEM,
    *under(
        "blocks.{n}.",
        "layers.{n}.",
        [
            Line("norm1.{p}", "layernorm_before.{p}"),
            Line("attn.qkv.{p}", "attention.{x}_proj.{p}"),
            Line("attn.proj.{p}", "attention.o_proj.{p}"),
            Line("norm2.{p}", "layernorm_after.{p}"),
            *[Line(f"mlp.{x}.{{p}}", f"mlp.{x}.{{p}}") for x in ("fc1", "fc2")],
        ],
    ),
]
TRANSFORMERS_HEAD = [Line("rep.{p}", "pooler.dense.{p}"), Line("head.{p}", "classifier.{p}")]
TRANSFORMERS_HEADS = [
    Line("head.{p}", "cls_classifier.{p}"),
    Line("dist_head.{p}", "distillation_classifier.{p}"),
]
SIGLIP = [  # of `joined` names
    Line("patch.{p}", "embeddings.patch_embedding.{p}"),
    Line("positions", "embeddings.position_embedding.weight", "table"),
    *under("blocks.{n}.", "encoder.layers.{n}.", TRANSFORMERS_BLOCK),
    Line("norm.{p}", "post_layernorm.{p}"),
    *under(
        "pool.",
        "head.",
        [
            Line("probe", "probe"),
            Line("qkv.{p}", "attention.in_proj_{p}"),
            Line("proj.{p}", "attention.out_proj.{p}"),
            Line("norm.{p}", "layernorm.{p}"),
            *[Line(f"mlp.{x}.{{p}}", f"mlp.{x}.{{p}}") for x in ("fc1", "fc2")],
        ],
    ),
]
TIMM = [
    Line("patch.{p}", "patch_embed.proj.{p}"),
    *[Line(x, x) for x in ("cls_token", "dist_token")],
    Line("positions", "pos_embed"),
    *[Line(f"{x}.{{p}}", f"{x}.{{p}}") for x in ("norm_pre", "norm", "head")],
    *under(
        "blocks.{n}.",
        "blocks.{n}.",
        [
            Line(f"{x}.{{p}}", f"{x}.{{p}}")
            for x in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        ],
    ),
    Line("pool.probe", "attn_pool.latent"),
    *under(
        "pool.",
        "attn_pool.",
        [
            Line(f"{x}.{{p}}", f"{x}.{{p}}")
            for x in ("q", "kv", "proj", "norm", "mlp.fc1", "mlp.fc2")
        ],
    ),
    Line("dist_head.{p}", "head_dist.{p}"),
]


def joined(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """pool.q and pool.kv as one pool.qkv, as torch's attention has them."""
    whole = {
        k.replace("pool.kv.", "pool.qkv."): torch.cat([state[k.replace("pool.kv.", "pool.q.")], v])
        for k, v in state.items()
        if "pool.kv." in k
    }
    return {
        **{k: v for k, v in state.items() if "pool.q." not in k and "pool.kv." not in k},
        **whole,
    }


def parted(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The way back of `joined`."""
    parts = {k: v for k, v in state.items() if "pool.qkv." not in k}
    for k, v in state.items():
        if "pool.qkv." in k:
            C = len(v) // 3
            parts |= {
                k.replace("pool.qkv.", "pool.q."): v[:C].clone(),
                k.replace("pool.qkv.", "pool.kv."): v[C:].clone(),
            }
    return parts


def lacking_in_transformers(spec: ViTConfig) -> str:
    """What of the spec transformers cannot say; "" where it can say all."""
    if spec.stem is not None:
        return "hybrid stem of this form"
    if spec.pre_norm or not spec.patch_bias:
        return "ViT with a norm before the blocks or without a patch bias"
    if spec.pool == "map":
        if spec.class_token or spec.distilled or spec.classes or spec.representation:
            return "ViT with attention pooling and a class token or a classifier"
        return ""
    if not spec.class_token or spec.pool == "gap":
        return "ViT that averages its tokens or has no class token"
    if spec.representation and (spec.classes or spec.distilled or spec.pool != "tok"):
        return "layer with tanh before a classifier"
    if spec.pool == "none" and spec.classes:
        return "classifier of every token"
    return ""


def lacking_in_timm(spec: ViTConfig) -> str:
    """What of the spec timm cannot say; "" where it can say all."""
    if spec.stem is not None:
        return "stem with these weight-standardised convolutions"
    if spec.representation:
        return "layer with tanh before the classifier"
    if spec.pre_norm == spec.patch_bias:
        return "ViT with both or neither of a norm before the blocks and a patch bias"
    if spec.eps not in ((1e-6,) if spec.distilled else (1e-6, 1e-5)):
        return f"ViT of this form with eps {spec.eps}"
    if spec.distilled and (spec.pool != "tok" or not spec.class_token):
        return "distilled ViT without a class token or with another pooling"
    return ""


def pixels_config(
    spec: ViTConfig, mean: Triple, std: Triple, centre: float, bicubic: bool
) -> dict[str, Any]:
    """preprocessor_config.json: the centred square of `centre` times the short side,
    at the model's size.
    """
    side = spec.resolution
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": 3 if bicubic else 2,
        "size": {"shortest_edge": round(side / centre)},
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }


def transformers_config(spec: ViTConfig, dtype: torch.dtype) -> dict[str, Any]:
    """config.json of ViT or DeiT, with a classifier or without, or of SiglipVisionModel."""
    if spec.pool == "map":
        kind, model = "SiglipVisionModel", "siglip_vision_model"
    elif spec.distilled:
        kind, model = (
            "DeiTForImageClassificationWithTeacher" if spec.classes else "DeiTModel",
            "deit",
        )
    else:
        kind, model = "ViTForImageClassification" if spec.classes else "ViTModel", "vit"
    config = {
        "architectures": [kind],
        "model_type": model,
        "dtype": str(dtype).removeprefix("torch."),
        "hidden_size": spec.width,
        "intermediate_size": spec.mlp,
        "num_hidden_layers": spec.depth,
        "num_attention_heads": spec.heads,
        "hidden_act": ACTIVATIONS[spec.activation],
        "layer_norm_eps": spec.eps,
        "image_size": spec.resolution,
        "patch_size": spec.patch,
        "num_channels": 3,
    }
    if spec.classes:
        names = [f"LABEL_{i}" for i in range(spec.classes)]
        config |= {
            "id2label": dict(enumerate(names)),
            "label2id": {name: i for i, name in enumerate(names)},
        }
    if model != "siglip_vision_model":
        config |= {
            "qkv_bias": True,
            "pooler_act": "tanh",
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        }
    return config


def timm_config(
    spec: ViTConfig, mean: Triple, std: Triple, centre: float, bicubic: bool, squash: bool = False
) -> dict[str, Any]:
    """config.json for timm's ViT whose norms have this eps; all its sizes are said anew."""
    args: dict[str, Any] = {
        "img_size": spec.resolution,
        "patch_size": spec.patch,
        "embed_dim": spec.width,
        "depth": spec.depth,
        "num_heads": spec.heads,
        "mlp_ratio": mlp_ratio(spec.width, spec.mlp),
        "act_layer": spec.activation,
        "pre_norm": spec.pre_norm,
        "class_token": spec.class_token,
        "global_pool": {"tok": "token", "gap": "avg", "map": "map", "none": ""}[spec.pool],
    }
    if not spec.distilled:
        args |= {"fc_norm": False, "pool_include_prefix": spec.pool in ("gap", "map")}
    kind = (
        "deit_base_distilled_patch16_224"
        if spec.distilled
        else {1e-6: "vit_base_patch16_224", 1e-5: "vit_base_patch32_clip_224"}[spec.eps]
    )
    return {
        "architecture": kind,
        "num_classes": spec.classes,
        "num_features": spec.width,
        "global_pool": args["global_pool"],
        "model_args": args,
        "pretrained_cfg": {
            "input_size": [3, spec.resolution, spec.resolution],
            "fixed_input_size": True,
            "interpolation": "bicubic" if bicubic else "bilinear",
            "crop_pct": centre,
            "crop_mode": "squash" if squash else "center",
            "mean": mean,
            "std": std,
            "num_classes": spec.classes,
            "first_conv": "patch_embed.proj",
            "classifier": ["head", "head_dist"] if spec.distilled else "head",
        },
    }


def with_positions(spec: ViTConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` with fixed positions written out as if they were learned;
    tokens before the patches have zeros.
    """
    if spec.position_kind == "learned":
        return state
    some = state["norm.weight"]
    fixed = sincos2d(spec.resolution // spec.patch, spec.width).to(some)
    front = fixed.new_zeros(int(spec.class_token) + int(spec.distilled), spec.width)
    return {**state, "positions": torch.cat([front, fixed])[None]}


def export_vit(
    spec: ViTConfig,
    state: dict[str, Tensor],
    to: str,
    out: Path,
    mean: Triple,
    std: Triple,
    centre: float = 1.0,
    bicubic: bool = True,
    squash: bool = False,
) -> list[Path]:
    """Write a ViT's weights, `state` by its own names, where `to`,
    another library or "safetensors", opens them; the files.

    mean, std: of pixels in [0, 1]. centre, bicubic: as `weights.export`; squash: to timm, the whole
    picture is made a square instead. Without a classifier
    transformers opens it by ViTModel.from_pretrained(out, add_pooling_layer=False), with attention
    pooling by SiglipVisionModel. Raises UserError where the library cannot express the model or
    `out` is taken.
    """
    if to == "safetensors":
        return write_folder(out, {"model.safetensors": state}, {"spec.json": spec_json(spec)})
    if to not in ("transformers", "timm"):
        raise UserError(
            f"There is no export of a ViT to {to!r}: give transformers, timm or safetensors."
        )
    if lacking := lacking_in_timm(spec) if to == "timm" else lacking_in_transformers(spec):
        headless = "; --without-head leaves it out" if "classifier" in lacking else ""
        raise UserError(f"{to} has no {lacking}: export to safetensors instead{headless}.")
    state = with_positions(spec, state)
    if to == "timm":
        texts: dict[str, Any] = {
            "config.json": timm_config(spec, mean, std, centre, bicubic, squash)
        }
        return write_folder(out, {"model.safetensors": to_foreign(TIMM, state)}, texts)
    texts = {
        "config.json": transformers_config(spec, state["patch.weight"].dtype),
        "preprocessor_config.json": pixels_config(spec, mean, std, centre, bicubic),
    }
    if spec.pool == "map":
        foreign = {f"vision_model.{k}": v for k, v in to_foreign(SIGLIP, joined(state)).items()}
    else:
        foreign = to_foreign(
            [*TRANSFORMERS, *(TRANSFORMERS_HEADS if spec.distilled else TRANSFORMERS_HEAD)], state
        )
        if spec.classes:  # under a classifier the network has a name of its own
            name = "deit" if spec.distilled else "vit"
            foreign = {k if "classifier." in k else f"{name}.{k}": v for k, v in foreign.items()}
    return write_folder(out, {"model.safetensors": foreign}, texts)


def import_vit(path: Path) -> dict[str, Tensor]:
    """Weights under our names, from an export of ours, a folder of transformers or timm,
    or a safetensors file.

    Which one it is shows in the names. Raises UserError where it is none of them.
    """
    state = read_foreign(path)
    if "patch.weight" in state:
        return state
    if "patch_embed.proj.weight" in state:
        return from_foreign(TIMM, state)
    short = {
        k.removeprefix("vit.").removeprefix("deit.").removeprefix("vision_model."): v
        for k, v in state.items()
    }
    if "embeddings.patch_embeddings.projection.weight" in short:
        short.pop("embeddings.mask_token", None)  # of their masked pre-training
        body = TRANSFORMERS_5 if "layers.0.layernorm_before.weight" in short else TRANSFORMERS
        return from_foreign([*body, *TRANSFORMERS_HEAD, *TRANSFORMERS_HEADS], short)
    if "embeddings.patch_embedding.weight" in short and "head.probe" in short:
        short.pop("embeddings.position_ids", None)
        return parted(from_foreign(SIGLIP, short))
    if "logit_scale" in state:
        raise UserError(
            f"{path} holds a CLIP or SigLIP with its texts, and the recipe is of pictures alone: "
            "'vtx export RUN --to timm DIR' of the run that it is from writes the picture tower, "
            "give that DIR."
        )
    raise UserError(
        f"{path} holds no ViT that is known here (its first tensor is "
        f"{next(iter(state), 'none')}): give a folder that 'vtx export', transformers "
        "or timm wrote."
    )


def export_network(
    spec: ViTConfig, state: dict[str, Tensor], to: str, out: Path, pixels: PixelForm
) -> list[Path]:
    """`export_vit` as `vtx_scale.interop.weights` calls it."""
    return export_vit(spec, state, to, out, pixels.mean, pixels.std, pixels.centre, pixels.bicubic)


def import_network(path: Path, spec: ViTConfig) -> dict[str, Tensor]:
    """`import_vit` as `vtx_scale.interop.weights` calls it."""
    return import_vit(path)
