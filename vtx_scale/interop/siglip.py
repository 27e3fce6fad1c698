"""SigLIP to and from transformers' SiglipModel; from open_clip, whose image tower is timm's;
its image tower to timm.

open_clip builds its SigLIPs from timm's names of published sizes, with exact GELU in version 1:
there is no way out to it.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.interop.clip import OPEN_CLIP_BLOCK, TRANSFORMERS_BLOCK
from vtx_scale.interop.files import PixelForm, read_foreign, spec_json, write_folder
from vtx_scale.interop.rename import Line, from_foreign, to_foreign, under
from vtx_scale.interop.tokens import TextForm
from vtx_scale.interop.vit import ACTIVATIONS, SIGLIP, TIMM, export_vit, joined, parted
from vtx_scale.specs.siglip import SiglipConfig

HALF = (0.5, 0.5, 0.5)  # mean and deviation: pixels from -1 to 1
TRANSFORMERS = [
    *under("image.", "vision_model.", SIGLIP),
    Line("text.embedding.weight", "text_model.embeddings.token_embedding.weight"),
    Line("text.positions", "text_model.embeddings.position_embedding.weight"),
    *under("text.blocks.{n}.", "text_model.encoder.layers.{n}.", TRANSFORMERS_BLOCK),
    Line("text.norm.{p}", "text_model.final_layer_norm.{p}"),
    Line("text.head.{p}", "text_model.head.{p}"),
    *[Line(x, x) for x in ("logit_scale", "logit_bias")],
]
OPEN_CLIP = [
    *under("image.", "visual.trunk.", TIMM),
    *under(
        "text.",
        "text.",
        [
            Line("embedding.weight", "token_embedding.weight"),
            Line("positions", "positional_embedding"),
            *under("blocks.{n}.", "transformer.resblocks.{n}.", OPEN_CLIP_BLOCK),
            Line("norm.{p}", "ln_final.{p}"),
            Line("head.{p}", "text_projection.{p}"),
        ],
    ),
    *[Line(x, x, "scalar") for x in ("logit_scale", "logit_bias")],
]


def transformers_config(
    spec: SiglipConfig, dtype: torch.dtype, bicubic: bool = True
) -> dict[str, Any]:
    """config.json and preprocessor_config.json.

    End and padding token are the last id, as in all our tokenizers.
    """
    image, text, side = spec.image, spec.text, spec.image.resolution

    def tower(kind: str, x: Any) -> dict[str, Any]:
        return {
            "model_type": kind,
            "hidden_size": x.width,
            "intermediate_size": x.mlp,
            "num_hidden_layers": x.depth,
            "num_attention_heads": x.heads,
            "hidden_act": ACTIVATIONS[x.activation],
            "layer_norm_eps": x.eps,
        }

    config = {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "dtype": str(dtype).removeprefix("torch."),
        "vision_config": {
            **tower("siglip_vision_model", image),
            "image_size": side,
            "patch_size": image.patch,
        },
        "text_config": {
            **tower("siglip_text_model", text),
            "vocab_size": text.vocab,
            "projection_size": text.embed,
            "max_position_embeddings": text.context,
            "bos_token_id": None,  # by default one that a small vocabulary lacks
            "eos_token_id": text.vocab - 1,
            "pad_token_id": text.vocab - 1,
        },
    }
    pixels = {
        "image_processor_type": "SiglipImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": 3 if bicubic else 2,
        "size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": HALF,
        "image_std": HALF,
    }
    return {"config.json": config, "preprocessor_config.json": pixels}


def export_siglip(
    spec: SiglipConfig, state: dict[str, Tensor], to: str, out: Path, bicubic: bool = True
) -> list[Path]:
    """Write the weights of a SigLIP where `to`, another library or "safetensors",
    opens them; the files.

    timm gets the image tower. bicubic: how pictures are resized. Raises UserError where the library
    cannot express the model or `out` is taken.
    """
    if to == "safetensors":
        return write_folder(out, {"model.safetensors": state}, {"spec.json": spec_json(spec)})
    if to not in ("transformers", "timm"):
        raise UserError(
            f"There is no export of SigLIP to {to!r}: give transformers, timm or safetensors."
        )
    image = spec.image
    if to == "timm":
        tower = {k.removeprefix("image."): v for k, v in state.items() if k.startswith("image.")}
        return export_vit(image, tower, to, out, HALF, HALF, bicubic=bicubic, squash=True)
    if (
        image.pool != "map"
        or image.class_token
        or image.pre_norm
        or not image.patch_bias
        or image.representation
        or image.stem is not None
        or image.position_kind != "learned"
    ):
        raise UserError(
            "transformers has only SigLIP's own image tower (attention pooling, no class token, "
            "learned positions): export to safetensors instead."
        )
    texts = transformers_config(spec, state["logit_scale"].dtype, bicubic)
    return write_folder(out, {"model.safetensors": to_foreign(TRANSFORMERS, joined(state))}, texts)


def import_siglip(path: Path) -> dict[str, Tensor]:
    """Weights under our names, from an export of ours, a folder of transformers or open_clip,
    or a safetensors file.

    Which one it is shows in the names. Raises UserError where it is none of them.
    """
    state = {k: v for k, v in read_foreign(path).items() if not k.endswith("position_ids")}
    if "image.patch.weight" in state:
        return state
    if "vision_model.head.probe" in state:
        return parted(from_foreign(TRANSFORMERS, state))
    if "visual.trunk.patch_embed.proj.weight" in state and "visual.trunk.head.weight" not in state:
        return from_foreign(OPEN_CLIP, state)
    raise UserError(
        f"{path} holds no SigLIP that is known here (its first tensor is "
        f"{next(iter(state), 'none')}): give a folder that 'vtx export', transformers "
        "or open_clip wrote."
    )


def text_form(spec: SiglipConfig) -> TextForm:
    """How captions are given to it."""
    return TextForm(spec.text.context, canonical=True)


def export_network(
    spec: SiglipConfig, state: dict[str, Tensor], to: str, out: Path, pixels: PixelForm
) -> list[Path]:
    """`export_siglip` as `vtx_scale.interop.weights` calls it."""
    return export_siglip(spec, state, to, out, pixels.bicubic)


def import_network(path: Path, spec: SiglipConfig) -> dict[str, Tensor]:
    """`import_siglip` as `vtx_scale.interop.weights` calls it."""
    return import_siglip(path)
