"""A run folder that stands where the first rank would start, without a training."""

import json
from pathlib import Path

import torch

from tests.runs import SMALL
from vtx_scale.checkpoints.format import manifest_name
from vtx_scale.interop.files import write_folder
from vtx_scale.launch import override, recipes
from vtx_scale.launch.paths import checkpoints_of
from vtx_scale.launch.prepare import prepare_folder, refuse
from vtx_scale.launch.resolve import resolve_data
from vtx_scale.specs.run import Run


def begin(folder: Path, *keys: str, recipe: str = "clip_vit_b32", fork: bool = False) -> Run:
    """What `vtx train` does before its first rank, and a checkpoint that says nothing after it;
    the run as the ranks get it.
    """
    run = override.override(recipes.find(recipe, True), [*SMALL, *keys])
    run = resolve_data(run, folder=folder)
    run = prepare_folder(run, folder, refuse(run, folder, 1), fork)
    checkpoints_of(folder).put(manifest_name(1), b"")
    return run


def about(folder: Path) -> dict:
    """run.json."""
    return json.loads((folder / "run.json").read_text())


def weights(folder: Path, value: float = 0.0) -> Path:
    """A folder of exported weights of no network at all."""
    write_folder(folder, {"model.safetensors": {"x": torch.full((3,), value)}}, {"spec.json": {}})
    return folder
