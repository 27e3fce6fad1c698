"""Folders of weights: written whole or not at all, read without ever opening a pickle."""

import json
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.paths import local_path
from vtx_scale.data_pipeline.publish import whole_folder
from vtx_scale.specs.foreign.beside import FILES as FILES
from vtx_scale.specs.foreign.beside import prefix_of

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class PixelForm:
    """How an evaluation looks at pictures: mean and deviation of pixels in [0, 1];
    `centre`, the share of the short side that is seen; `bicubic`, how it is resized.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    centre: float = 1.0
    bicubic: bool = True


def write_folder(
    out: Path, weights: dict[str, dict[str, Tensor]], texts: dict[str, Any]
) -> list[Path]:
    """Safetensors and JSON files by name; the paths.

    `out` appears when all of them are on the disk.

    Raises UserError where `out` exists and is not an empty folder.
    """
    local_path(out)
    refuse_taken(out)
    with whole_folder(out.absolute()) as part:
        for name, tensors in weights.items():
            save_file(tensors, part / name, metadata={"format": "pt"})  # transformers before 5 asks
        for name, body in texts.items():
            (part / name).write_text(json.dumps(body, indent=2) + "\n")
    return [out / name for name in (*weights, *texts)]


def refuse_taken(out: Path) -> None:
    """Raises UserError where `out` exists and is not an empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty folder: give another one.")


def read_weights(path: Path, names: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a folder:
    the first of `names` in it, else its one safetensors file.

    A name that ends in .index.json lists the files that hold the parts. Raises UserError.
    """
    local_path(path)
    if path.is_dir():
        found = [path / name for name in names if (path / name).is_file()] or sorted(
            path.glob("*.safetensors")
        )
        if not found:
            pickles = sorted(p for p in path.iterdir() if p.suffix in PICKLES)
            if pickles:
                refuse_pickle(pickles[0])
            raise UserError(
                f"{path} holds no .safetensors file: give a folder that 'vtx export', "
                "transformers or open_clip wrote."
            )
        path = found[0]
    if path.suffix in PICKLES:
        refuse_pickle(path)
    try:
        if path.name.endswith(".index.json"):
            return {k: v for file in listed(path) for k, v in load_file(file).items()}
        return load_file(path)
    except FileNotFoundError as e:
        raise UserError(f"{path} cannot be read: {e}; give the whole folder.") from None
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(
            f"{path} is no safetensors file ({e}): give one, or export it again."
        ) from None


def read_foreign(path: Path) -> dict[str, Tensor]:
    """As `read_weights`, with what wrappers of a model have put before every name left out."""
    state = read_weights(path, FILES)
    prefix = prefix_of(state)
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def listed(index: Path) -> list[Path]:
    """The files that an index names. Raises UserError where one lies outside of its folder."""
    names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    for name in names:
        # by the name alone: in a cache of downloads each file is a link
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(
                f"{index} names a file outside of its folder ({name}): nothing is read from there, "
                "get the folder anew from who made it."
            )
        if Path(name).suffix in PICKLES:
            refuse_pickle(index.parent / name)
    return [index.parent / name for name in names]


def refuse_pickle(path: Path) -> None:
    raise UserError(
        f"{path} is a pickle, which is never read here because opening one runs code: convert it "
        "to safetensors first (transformers: from_pretrained(FOLDER).save_pretrained(NEW); timm: "
        "timm.models.save_for_hf(model, NEW, safe_serialization=True))."
    )


def spec_json(spec: Any) -> Any:
    """A spec as plain values, as it stands in run.json."""
    if is_dataclass(spec) and not isinstance(spec, type):
        return {
            "spec": f"{type(spec).__module__}:{type(spec).__qualname__}",
            **{f.name.rstrip("_"): spec_json(getattr(spec, f.name)) for f in fields(spec)},
        }
    return spec
