"""The config that lies beside foreign weights, found by the names of their tensors."""

import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtx_scale.data_pipeline.errors import UserError

FILES = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "model.safetensors.index.json",
)
WRAPPERS = (
    "module.",
    "_orig_mod.",
    "model.",
)  # of what wraps a model: DDP, torch.compile, a trainer


@dataclass(frozen=True)
class Beside:
    """Which library's layout weights have ("" for none that is known), which of its models, the
    config's file and body (None where none lies there), the prefix of all names, mean and
    deviation of its pixels.
    """

    library: str = ""
    kind: str = ""
    file: str = ""
    body: dict[str, Any] | None = None
    prefix: str = ""
    pixels: tuple[tuple[float, ...], tuple[float, ...]] | None = None


def prefix_of(names: Iterable[str]) -> str:
    """What wrappers have put before every name."""
    rest, prefix = list(names), ""
    while rest:
        wrapper = next((w for w in WRAPPERS if all(n.startswith(w) for n in rest)), None)
        if wrapper is None:
            break
        prefix += wrapper
        rest = [name.removeprefix(wrapper) for name in rest]
    return prefix


def names_at(path: Path) -> list[str]:
    """The names of the tensors that a file or folder of weights holds; none where it cannot be
    read, which its reader tells.
    """
    if path.is_dir():
        found = [path / name for name in FILES if (path / name).is_file()]
        found += sorted(path.glob("*.safetensors"))
        if not found:
            return []
        path = found[0]
    try:
        if path.name.endswith(".index.json"):
            return list(json.loads(path.read_text())["weight_map"])
        with path.open("rb") as f:
            (length,) = struct.unpack("<Q", f.read(8))
            if length > 100 << 20:
                return []
            return [name for name in json.loads(f.read(length)) if name != "__metadata__"]
    except (OSError, ValueError, struct.error, KeyError, TypeError):
        return []


def layout(names: list[str]) -> tuple[str, str]:
    """The library and the model whose names these are."""
    known = set(names)
    for name, found in {
        "visual.trunk.patch_embed.proj.weight": ("open_clip", "siglip"),
        "visual.conv1.weight": ("open_clip", "clip"),
        "patch_embed.proj.weight": ("timm", "vit"),
        "bn1.weight": ("timm", "resnet"),
        "vision_model.embeddings.class_embedding": ("transformers", "clip"),
        "text_model.head.weight": ("transformers", "siglip"),
        "vision_model.head.probe": ("transformers", "siglip_vision_model"),
        "head.probe": ("transformers", "siglip_vision_model"),
        "transformer.wte.weight": ("transformers", "imagegpt"),
        "blocks.input.weight": ("transformers", "flava_image_codebook"),
        "image_codebook.blocks.input.weight": ("transformers", "flava_image_codebook"),
    }.items():
        if name in known:
            return found
    if any(name.endswith("embeddings.patch_embeddings.projection.weight") for name in known):
        return "transformers", "vit"
    return "", ""


def look(path: Path) -> Beside:
    """What lies at a file or folder of weights. Raises UserError for a config that is no JSON."""
    names = names_at(path)
    prefix = prefix_of(names)
    library, kind = layout([name.removeprefix(prefix) for name in names])
    if not library:
        return Beside()
    folder = path if path.is_dir() else path.parent
    name = "open_clip_config.json" if library == "open_clip" else "config.json"
    file, body = folder / name, read(folder / name)
    found = Beside(library, kind, str(file), None, prefix)
    if body is None:
        return found
    if library == "open_clip":
        body, about = body.get("model_cfg", body), body.get("preprocess_cfg") or {}
        return Beside(library, kind, str(file), body, prefix, statistics(about, "mean", "std"))
    if library == "timm":
        if "architecture" not in body or "model_type" in body:
            return found
        if "pretrained_cfg" not in body:  # timm's older form, in one piece
            kept: dict[str, Any] = {
                k: body[k] for k in ("architecture", "model_args", "global_pool") if k in body
            }
            rest = {k: v for k, v in body.items() if k not in kept and k != "num_features"}
            body = {**kept, "pretrained_cfg": rest}
        about = body["pretrained_cfg"] or {}
        return Beside(library, kind, str(file), body, prefix, statistics(about, "mean", "std"))
    if "model_type" not in body:
        return found
    about = read(folder / "preprocessor_config.json") or {}
    if not about.get("do_normalize", True):
        about = {}
    pixels = statistics(about, "image_mean", "image_std")
    return Beside(library, kind, str(file), body, prefix, pixels)


def read(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None where there is no file. Raises UserError."""
    if not path.is_file():
        return None
    try:
        body = json.loads(path.read_text())
    except (ValueError, OSError):
        body = None
    if not isinstance(body, dict):
        raise UserError(f"{path} is no JSON object: get the folder anew from who made it.")
    return body


def statistics(
    about: dict[str, Any], mean: str, std: str
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and deviation of pixels in [0, 1], where a config says both."""
    if not isinstance(about.get(mean), list) or not isinstance(about.get(std), list):
        return None
    return tuple(about[mean]), tuple(about[std])
