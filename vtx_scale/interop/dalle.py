"""DALL-E goes out and comes back as a whole, transformer and codec, in our own layout: no library
has one.
"""

from pathlib import Path

from torch import Tensor

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.interop.files import FILES, PixelForm, read_weights, spec_json, write_folder
from vtx_scale.specs.dalle import DalleConfig


def export_dalle(spec: DalleConfig, state: dict[str, Tensor], to: str, out: Path) -> list[Path]:
    """Write transformer and codec together as `to`, "safetensors"; the files.

    Raises UserError for another library, and where `out` is taken.
    """
    if to != "safetensors":
        raise UserError(
            f"{to} has no DALL-E: export this run to safetensors, transformer and codec together; "
            "of its codec alone, a run of dvae_dalle, transformers has the encoder."
        )
    return write_folder(out, {"model.safetensors": state}, {"spec.json": spec_json(spec)})


def import_dalle(path: Path) -> dict[str, Tensor]:
    """Weights under our names, the transformer's with "net.", the codec's with "codec.".

    Raises UserError where there is no transformer.
    """
    state = read_weights(path, FILES)
    if not any(name.startswith("net.") for name in state):
        raise UserError(f"{path} holds no transformer of a DALL-E: give what 'vtx export' wrote.")
    return state


def export_network(
    spec: DalleConfig, state: dict[str, Tensor], to: str, out: Path, pixels: PixelForm
) -> list[Path]:
    """`export_dalle` as `vtx_scale.interop.weights` calls it."""
    return export_dalle(spec, state, to, out)


def import_network(path: Path, spec: DalleConfig) -> dict[str, Tensor]:
    """`import_dalle` as `vtx_scale.interop.weights` calls it."""
    return import_dalle(path)
