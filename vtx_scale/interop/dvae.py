"""The encoder of a discrete VAE to and from transformers' FlavaImageCodebook,
which has OpenAI's released layout.

No library has the decoder: it goes and comes in our own layout alone.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.interop.files import PixelForm, read_foreign, spec_json, write_folder
from vtx_scale.interop.rename import Line, from_foreign, to_foreign
from vtx_scale.specs.dvae import CodecConfig


def table(spec: CodecConfig) -> list[Line]:
    """Of the encoder."""
    lines = [
        Line("encoder.input.{p}", "blocks.input.{p}"),
        Line("encoder.output.{p}", "blocks.output.conv.{p}"),
    ]
    for g in range(spec.groups):
        for b in range(spec.blocks):
            ours, theirs = f"encoder.groups.{g}.{b}.", f"blocks.group_{g + 1}.group.block_{b + 1}."
            lines += [
                Line(f"{ours}convs.{k}.{{p}}", f"{theirs}res_path.path.conv_{k + 1}.{{p}}")
                for k in range(4)
            ]
            lines.append(Line(f"{ours}skip.{{p}}", f"{theirs}id_path.{{p}}"))
    return lines


def config(spec: CodecConfig) -> dict[str, Any]:
    return {
        "config.json": {
            "architectures": ["FlavaImageCodebook"],
            "model_type": "flava_image_codebook",
            "num_groups": spec.groups,
            "input_channels": 3,
            "num_blocks_per_group": spec.blocks,
            "hidden_size": spec.width,
            "vocab_size": spec.vocab,
        }
    }


def export_codec(spec: CodecConfig, state: dict[str, Tensor], to: str, out: Path) -> list[Path]:
    """Write a codec where `to`, "transformers" (the encoder alone) or "safetensors",
    opens it; the files.

    Their encoder wants pixels in [0, 1] mapped to 0.1 + 0.8 x. Raises UserError where the library
    cannot express the model or `out` is taken.
    """
    if to == "safetensors":
        return write_folder(out, {"model.safetensors": state}, {"spec.json": spec_json(spec)})
    if to != "transformers":
        raise UserError(
            f"There is no export of a discrete VAE to {to!r}: "
            "give transformers (its encoder) or safetensors."
        )
    if spec.groups != 4 or spec.gain is not None:
        raise UserError(
            "transformers has codecs of four groups, whose residual paths count 1 / (groups "
            "blocks)^2: export this one to safetensors."
        )
    encoder = {k: v for k, v in state.items() if k.startswith("encoder.")}
    return write_folder(out, {"model.safetensors": to_foreign(table(spec), encoder)}, config(spec))


def import_codec(path: Path, spec: CodecConfig) -> dict[str, Tensor]:
    """Weights under our names: of ours whole, of transformers the encoder.

    Raises UserError where the spec's residual paths count otherwise than theirs.
    """
    state = read_foreign(path)
    if "encoder.input.weight" in state:
        return state
    if spec.gain is not None:
        raise UserError(
            f"{path} counts a residual path 1 / (groups blocks)^2: leave objective.net.gain out."
        )
    state = {k.removeprefix("image_codebook."): v for k, v in state.items()}
    return from_foreign(table(spec), state)


def export_network(
    spec: CodecConfig, state: dict[str, Tensor], to: str, out: Path, pixels: PixelForm
) -> list[Path]:
    """`export_codec` as `vtx_scale.interop.weights` calls it."""
    return export_codec(spec, state, to, out)


def import_network(path: Path, spec: CodecConfig) -> dict[str, Tensor]:
    """`import_codec` as `vtx_scale.interop.weights` calls it."""
    return import_codec(path, spec)
