"""CLIP to and from transformers' CLIPModel and open_clip's CLIP;
its image tower alone to timm's VisionTransformer.

One with a ResNet goes to open_clip, the only one of them that has it.

The tables of names come first, then what each library's config says, then export and import.
"""

import math
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.interop.files import PixelForm, read_foreign, spec_json, write_folder
from vtx_scale.interop.rename import Line, from_foreign, to_foreign, under
from vtx_scale.interop.resnet import STAGES, batch_norm, with_counts, without_counts
from vtx_scale.interop.tokens import TextForm
from vtx_scale.objectives.pixels import STATISTICS
from vtx_scale.specs.clip import ClipConfig
from vtx_scale.specs.resnet import ClipResNetConfig
from vtx_scale.specs.vit import ViTConfig

MEAN, STD = STATISTICS["clip"]
TRANSFORMERS_BLOCK = [
    Line("norm1.{p}", "layer_norm1.{p}"),
    Line("attn.qkv.{p}", "self_attn.{x}_proj.{p}"),
    Line("attn.proj.{p}", "self_attn.out_proj.{p}"),
    Line("norm2.{p}", "layer_norm2.{p}"),
    Line("mlp.fc1.{p}", "mlp.fc1.{p}"),
    Line("mlp.fc2.{p}", "mlp.fc2.{p}"),
]
TRANSFORMERS = [
    Line("image.patch.weight", "vision_model.embeddings.patch_embedding.weight"),
    Line("image.cls_token", "vision_model.embeddings.class_embedding", "vector"),
    Line("image.positions", "vision_model.embeddings.position_embedding.weight", "table"),
    Line("image.norm_pre.{p}", "vision_model.pre_layrnorm.{p}"),  # their spelling
    *under("image.blocks.{n}.", "vision_model.encoder.layers.{n}.", TRANSFORMERS_BLOCK),
    Line("image.norm.{p}", "vision_model.post_layernorm.{p}"),
    Line("image_proj", "visual_projection.weight", "transposed"),
    Line("text.embedding.weight", "text_model.embeddings.token_embedding.weight"),
    Line("text.positions", "text_model.embeddings.position_embedding.weight"),
    *under("text.blocks.{n}.", "text_model.encoder.layers.{n}.", TRANSFORMERS_BLOCK),
    Line("text.norm.{p}", "text_model.final_layer_norm.{p}"),
    Line("text_proj", "text_projection.weight", "transposed"),
    Line("logit_scale", "logit_scale", "scalar"),
]
OPEN_CLIP_BLOCK = [
    Line("norm1.{p}", "ln_1.{p}"),
    Line("attn.qkv.{p}", "attn.in_proj_{p}"),
    Line("attn.proj.{p}", "attn.out_proj.{p}"),
    Line("norm2.{p}", "ln_2.{p}"),
    Line("mlp.fc1.{p}", "mlp.c_fc.{p}"),
    Line("mlp.fc2.{p}", "mlp.c_proj.{p}"),
]
OPEN_CLIP_TEXT = [
    Line("text.embedding.weight", "token_embedding.weight"),
    Line("text.positions", "positional_embedding"),
    *under("text.blocks.{n}.", "transformer.resblocks.{n}.", OPEN_CLIP_BLOCK),
    Line("text.norm.{p}", "ln_final.{p}"),
    Line("text_proj", "text_projection"),
    Line("logit_scale", "logit_scale", "scalar"),
    Line("logit_bias", "logit_bias", "scalar"),
]
OPEN_CLIP = [  # OpenAI's names too
    Line("image.patch.weight", "visual.conv1.weight"),
    Line("image.cls_token", "visual.class_embedding", "vector"),
    Line("image.positions", "visual.positional_embedding", "table"),
    Line("image.norm_pre.{p}", "visual.ln_pre.{p}"),
    *under("image.blocks.{n}.", "visual.transformer.resblocks.{n}.", OPEN_CLIP_BLOCK),
    Line("image.norm.{p}", "visual.ln_post.{p}"),
    Line("image_proj", "visual.proj"),
    *OPEN_CLIP_TEXT,
]
OPEN_CLIP_RESNET = [  # OpenAI's names too
    *under(
        "image.",
        "visual.",
        [
            *[
                line
                for k in "123"
                for line in (
                    Line(f"conv{k}.weight", f"conv{k}.weight"),
                    *batch_norm(f"norm{k}", f"bn{k}"),
                )
            ],
            *STAGES,
            Line("pool.positions", "attnpool.positional_embedding", "table"),
            *[Line(f"pool.{x}.{{p}}", f"attnpool.{x}_proj.{{p}}") for x in "qkvc"],
        ],
    ),
    *OPEN_CLIP_TEXT,
]
TIMM = [
    Line("image.patch.weight", "patch_embed.proj.weight"),
    Line("image.cls_token", "cls_token"),
    Line("image.positions", "pos_embed"),
    *[Line(f"image.{x}.{{p}}", f"{x}.{{p}}") for x in ("norm_pre", "norm")],
    *under(
        "image.blocks.{n}.",
        "blocks.{n}.",
        [
            Line(f"{x}.{{p}}", f"{x}.{{p}}")
            for x in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        ],
    ),
    Line("image_proj", "head.weight", "transposed"),
]
CONSTANTS = {
    "text_model.embeddings.position_ids",
    "vision_model.embeddings.position_ids",  # not learned: left out
    "input_resolution",
    "context_length",
    "vocab_size",
    "attn_mask",
}


def transformers_config(
    spec: ClipConfig, dtype: torch.dtype, bicubic: bool = True
) -> dict[str, Any]:
    """config.json and preprocessor_config.json.

    The end token is the last id, as in all our tokenizers.
    """
    image, text, side = cast(ViTConfig, spec.image), spec.text, spec.image.resolution
    acts = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}

    def tower(kind: str, x: Any, mlp: int, eps: float) -> dict[str, Any]:
        return {
            "model_type": kind,
            "hidden_size": x.width,
            "intermediate_size": mlp,
            "num_hidden_layers": x.depth,
            "num_attention_heads": x.heads,
            "hidden_act": acts[x.activation],
            "layer_norm_eps": eps,
            "projection_dim": spec.embed,
        }

    config = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "dtype": str(dtype).removeprefix("torch."),
        "projection_dim": spec.embed,
        "logit_scale_init_value": math.log(spec.scale),
        "vision_config": {
            **tower("clip_vision_model", image, image.mlp, image.eps),
            "image_size": side,
            "patch_size": image.patch,
        },
        "text_config": {
            **tower("clip_text_model", text, 4 * text.width, 1e-5),
            "vocab_size": text.vocab,
            "max_position_embeddings": text.context,
            "bos_token_id": text.vocab - 2,
            "eos_token_id": text.vocab - 1,
            "pad_token_id": 0,
        },
    }
    pixels = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": 3 if bicubic else 2,
        "size": {"shortest_edge": side},
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
    }
    return {"config.json": config, "preprocessor_config.json": pixels}


def open_clip_config(spec: ClipConfig, bicubic: bool = True) -> dict[str, Any]:
    """open_clip_config.json."""
    text = spec.text

    def act(activation: str) -> dict[str, Any]:
        return {"act_kwargs": {"approximate": "tanh"}} if activation == "gelu_tanh" else {}

    if spec.image.clip_tower == "resnet":
        resnet = cast(ClipResNetConfig, spec.image)
        vision = {
            "image_size": resnet.resolution,
            "layers": list(resnet.blocks),
            "width": resnet.stem,
            "patch_size": None,
            "head_width": resnet.widths[-1] // resnet.heads,
        }
    else:
        image = cast(ViTConfig, spec.image)
        if (image.activation == "quick_gelu") != (text.activation == "quick_gelu"):
            raise UserError(
                "open_clip has one activation for both towers: "
                "export to transformers or safetensors instead."
            )
        vision = {
            "image_size": image.resolution,
            "layers": image.depth,
            "width": image.width,
            "patch_size": image.patch,
            "head_width": image.width // image.heads,
            "mlp_ratio": mlp_ratio(image.width, image.mlp),
            "norm_kwargs": {"eps": image.eps},
            **act(image.activation),
        }
    words = {
        "context_length": text.context,
        "vocab_size": text.vocab,
        "width": text.width,
        "heads": text.heads,
        "layers": text.depth,
        **act(text.activation),
    }
    model = {
        "embed_dim": spec.embed,
        "quick_gelu": text.activation == "quick_gelu",
        "vision_cfg": vision,
        "text_cfg": words,
    }
    if spec.loss == "sigmoid":
        model["init_logit_bias"] = -10.0  # that there is a bias; its value is in the weights
    pixels = {
        "size": spec.image.resolution,
        "mean": MEAN,
        "std": STD,
        "interpolation": "bicubic" if bicubic else "bilinear",
        "resize_mode": "shortest",
    }
    return {"open_clip_config.json": {"model_cfg": model, "preprocess_cfg": pixels}}


def timm_config(spec: ClipConfig, bicubic: bool = True) -> dict[str, Any]:
    """config.json for timm's CLIP ViT at B/32, every size of which is then said anew."""
    image = cast(ViTConfig, spec.image)
    if image.eps != 1e-5:
        raise UserError(
            f"timm's CLIP towers have eps 1e-5, this one {image.eps}: "
            "export to safetensors instead."
        )
    args = {
        "img_size": image.resolution,
        "patch_size": image.patch,
        "embed_dim": image.width,
        "depth": image.depth,
        "num_heads": image.heads,
        "mlp_ratio": mlp_ratio(image.width, image.mlp),
        "act_layer": image.activation,
    }
    side = [3, image.resolution, image.resolution]
    return {
        "config.json": {
            "architecture": "vit_base_patch32_clip_224",
            "num_classes": spec.embed,
            "num_features": image.width,
            "global_pool": "token",
            "model_args": args,
            "pretrained_cfg": {
                "input_size": side,
                "fixed_input_size": True,
                "interpolation": "bicubic" if bicubic else "bilinear",
                "crop_pct": 1.0,
                "crop_mode": "center",
                "mean": MEAN,
                "std": STD,
                "num_classes": spec.embed,
                "first_conv": "patch_embed.proj",
                "classifier": "head",
            },
        }
    }


def mlp_ratio(width: int, mlp: int) -> float:
    """The ratio that these libraries turn back into `mlp` by int(width * ratio)."""
    return mlp / width if int(width * (mlp / width)) == mlp else (mlp + 0.5) / width


def export_clip(
    spec: ClipConfig, state: dict[str, Tensor], to: str, out: Path, bicubic: bool = True
) -> list[Path]:
    """Write the weights of a CLIP where `to`, another library or "safetensors",
    opens them; the files.

    timm gets the image tower, its projection as the classifier. bicubic: how pictures are resized.
    Raises UserError where the library cannot express the model or `out` is taken.
    """
    if to == "safetensors":
        return write_folder(out, {"model.safetensors": state}, {"spec.json": spec_json(spec)})
    if to not in ("transformers", "open_clip", "timm"):
        raise UserError(
            f"There is no export to {to!r}: give transformers, open_clip, timm or safetensors."
        )
    if not spec.image.clip_tower:
        raise UserError(
            f"{to} has no CLIP with a {spec.image.title()}: export to safetensors instead."
        )
    if spec.image.clip_tower == "resnet":
        return export_resnet_clip(spec, state, to, out, bicubic)
    image = cast(ViTConfig, spec.image)
    if (
        image.pool != "tok"
        or image.patch_bias
        or image.classes
        or not (image.pre_norm and image.class_token)
    ):
        raise UserError(
            f"{to} has only CLIP's own image tower (class token, norm before the blocks, "
            "no patch bias): export to safetensors instead."
        )
    if to == "transformers":
        if spec.loss == "sigmoid":
            raise UserError(
                "transformers' CLIPModel has no bias for the sigmoid loss: "
                "export to open_clip instead."
            )
        texts = transformers_config(spec, state["logit_scale"].dtype, bicubic)
        return write_folder(out, {"model.safetensors": to_foreign(TRANSFORMERS, state)}, texts)
    if to == "open_clip":
        texts = open_clip_config(spec, bicubic)
        return write_folder(
            out, {"open_clip_model.safetensors": to_foreign(OPEN_CLIP, state)}, texts
        )
    texts = timm_config(spec, bicubic)
    tower = to_foreign(
        TIMM, {k: v for k, v in state.items() if k.startswith(("image.", "image_proj"))}
    )
    tower["head.bias"] = tower["head.weight"].new_zeros(spec.embed)
    return write_folder(out, {"model.safetensors": tower}, texts)


def export_resnet_clip(
    spec: ClipConfig, state: dict[str, Tensor], to: str, out: Path, bicubic: bool = True
) -> list[Path]:
    """The same of one with a ResNet, which open_clip alone has."""
    blocks = len(spec.image.strides)
    if to != "open_clip":
        raise UserError(
            f"{to} has no CLIP with a ResNet: export to open_clip or safetensors instead."
        )
    if blocks != 4:
        raise UserError(
            f"open_clip's ResNets have four stages, this one {blocks}: export to safetensors."
        )
    return write_folder(
        out,
        {"open_clip_model.safetensors": with_counts(to_foreign(OPEN_CLIP_RESNET, state))},
        open_clip_config(spec, bicubic),
    )


def import_clip(path: Path) -> dict[str, Tensor]:
    """Weights under our names, from an export of ours, a folder of transformers or open_clip,
    or a safetensors file.

    Which one it is shows in the names. Raises UserError where it is none of them.
    """
    state = {k: v for k, v in without_counts(read_foreign(path)).items() if k not in CONSTANTS}
    if "image.patch.weight" in state or "image.pool.c.weight" in state:
        return state
    if "vision_model.embeddings.patch_embedding.weight" in state:
        return from_foreign(TRANSFORMERS, state)
    # where open_clip keeps the text tower apart, its names begin with text.
    if "visual.conv1.weight" in state:
        table = OPEN_CLIP_RESNET if "visual.attnpool.c_proj.weight" in state else OPEN_CLIP
        return from_foreign(table, {k.removeprefix("text."): v for k, v in state.items()})
    raise UserError(
        f"{path} holds no CLIP that is known here (its first tensor is "
        f"{next(iter(state), 'none')}): give a folder that 'vtx export', transformers "
        "or open_clip wrote."
    )


def text_form(spec: ClipConfig) -> TextForm:
    """How captions are given to it."""
    return TextForm(spec.text.context)


def export_network(
    spec: ClipConfig, state: dict[str, Tensor], to: str, out: Path, pixels: PixelForm
) -> list[Path]:
    """`export_clip` as `vtx_scale.interop.weights` calls it."""
    return export_clip(spec, state, to, out, pixels.bicubic)


def import_network(path: Path, spec: ClipConfig) -> dict[str, Tensor]:
    """`import_clip` as `vtx_scale.interop.weights` calls it."""
    return import_clip(path)
