"""iGPT to and from transformers' ImageGPT: the table, what differs, export, import.

There the start is one more row of the embedding, to be fed in front of the colours; products are
transposed and have biases, which are zero, as the released weights' are. The palette goes with it
as the image processor's clusters.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vtx_scale.backbones.igpt import EPS
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.interop.files import PixelForm, read_foreign, spec_json, write_folder
from vtx_scale.interop.rename import Line, from_foreign, to_foreign, under
from vtx_scale.specs.igpt import IgptConfig
from vtx_scale.specs.palette import KEY, clusters, read_palette

PROCESSOR = "preprocessor_config.json"
PRODUCTS = (
    ("attn.qkv", "attn.c_attn"),
    ("attn.proj", "attn.c_proj"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
)
TABLE = under(
    "net.",
    "",
    [
        Line("embedding.weight", "transformer.wte.weight"),
        Line("positions", "transformer.wpe.weight", "table"),
        *under(
            "blocks.{n}.",
            "transformer.h.{n}.",
            [
                *[Line(f"norm{k}.weight", f"ln_{k}.weight") for k in "12"],
                *[
                    Line(f"{ours}.weight", f"{theirs}.weight", "transposed")
                    for ours, theirs in PRODUCTS
                ],
            ],
        ),
        Line("norm.weight", "transformer.ln_f.weight"),
        Line("out.weight", "lm_head.weight"),
        Line("head.weight", "score.weight"),
    ],
)
BIASES = tuple(f".{theirs}.bias" for _, theirs in PRODUCTS)


def config(spec: IgptConfig, bicubic: bool) -> dict[str, Any]:
    """config.json and preprocessor_config.json.

    Fine-tuned it is their classifier, in whose file the layer that says colours stands too; it is
    to be fed the start in front as well. Their processor squashes what is no square, where an
    evaluation here looks at the middle.
    """
    net = spec.net
    task = "ImageClassification" if net.classes else "CausalImageModeling"
    labels = {f"LABEL_{k}": k for k in range(net.classes)}
    kinds = {"id2label": {str(k): label for label, k in labels.items()}, "label2id": labels}
    return {
        "config.json": {
            "architectures": [f"ImageGPTFor{task}"],
            **(kinds if labels else {}),
            "model_type": "imagegpt",
            "vocab_size": net.colours + 1,
            "n_positions": net.side**2,
            "n_embd": net.width,
            "n_layer": net.depth,
            "n_head": net.heads,
            "activation_function": "quick_gelu",
            "layer_norm_epsilon": EPS,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
            "tie_word_embeddings": False,
        },
        PROCESSOR: {
            "image_processor_type": "ImageGPTImageProcessor",
            "do_resize": True,
            "do_normalize": True,
            "do_color_quantize": True,
            "size": {"height": net.side, "width": net.side},
            "resample": 3 if bicubic else 2,
            KEY: clusters(spec.palette),
        },
    }


def export_igpt(
    spec: IgptConfig, state: dict[str, Tensor], to: str, out: Path, bicubic: bool = True
) -> list[Path]:
    """Write an iGPT where `to`, "transformers" or "safetensors", opens it; the files.

    bicubic: how pictures are resized, else bilinear. Raises UserError where the library cannot
    express the model or `out` is taken.
    """
    if to == "safetensors":
        return write_folder(out, {"model.safetensors": state}, {"spec.json": spec_json(spec)})
    if to != "transformers":
        raise UserError(
            f"There is no export of an iGPT to {to!r}: give transformers or safetensors."
        )
    if not spec.net.causal or "net.head.bias" in state:
        raise UserError(
            "transformers' ImageGPT is causal and its classifier has no bias: "
            "export this one to safetensors."
        )
    start = state["net.start"][0]
    foreign = to_foreign(TABLE, {k: v for k, v in state.items() if k != "net.start"})
    foreign["transformer.wte.weight"] = torch.cat([foreign["transformer.wte.weight"], start])
    for name in [
        k for k in foreign if k.endswith(tuple(b.replace("bias", "weight") for b in BIASES))
    ]:
        foreign[name.replace("weight", "bias")] = torch.zeros(
            foreign[name].shape[1], dtype=foreign[name].dtype
        )
    return write_folder(out, {"model.safetensors": foreign}, config(spec, bicubic))


def import_igpt(path: Path) -> dict[str, Tensor]:
    """Weights under our names, from a folder or a safetensors file of ours or of transformers.

    Raises UserError for biases that are not zero: this network has none.
    """
    state = read_foreign(path)
    if "net.embedding.weight" in state:
        return state
    biases = [k for k in state if k.endswith(BIASES)]
    if any(state[k].any() for k in biases):
        raise UserError(
            f"{path} has biases that are not zero, and iGPT has none: "
            "give weights of the released layout."
        )
    kept = {
        k: v
        for k, v in state.items()
        if k not in biases and not k.endswith((".attn.bias", ".attn.masked_bias"))
    }
    ours = from_foreign(TABLE, kept)
    rows = ours["net.embedding.weight"]
    return {
        **ours,
        "net.embedding.weight": rows[:-1].contiguous(),
        "net.start": rows[-1:][None].contiguous(),
    }


def export_network(
    spec: IgptConfig, state: dict[str, Tensor], to: str, out: Path, pixels: PixelForm
) -> list[Path]:
    """`export_igpt` as `vtx_scale.interop.weights` calls it."""
    return export_igpt(spec, state, to, out, pixels.bicubic)


def import_network(path: Path, spec: IgptConfig) -> dict[str, Tensor]:
    """`import_igpt` as `vtx_scale.interop.weights` calls it.

    Raises UserError where the weights lie beside another palette than the recipe's.
    """
    processor = path / PROCESSOR
    if processor.is_file() and KEY in json.loads(processor.read_text()):
        if clusters(read_palette(processor)) != clusters(spec.palette):
            raise UserError(
                f"{path} was trained on the colours of another palette than the recipe's: "
                f"add objective.palette={processor}."
            )
    return import_igpt(path)
