"""A run folder: who may write in it, what it was made from, and `open_run` for those who read it.

    run.json metrics.jsonl ledger.jsonl evaluations.jsonl log.txt tensorboard/ checkpoints/step-00000120/ control/ lease/
"""

import fcntl
import json
import os
import socket
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.launch import override, recipes
from vtx_scale.specs.run import Run

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn


def write_whole(path: Path, body: str) -> None:
    """Write a file so that a reader sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(body)
    os.replace(part, path)


def hold(folder: Path) -> IO[str]:
    """The right to write in a folder, for as long as the returned file is open or its process lives.

    Raises UserError, naming the holder, where another process of this host has it.
    """
    path = folder / "lease" / "local"
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        raise UserError(f"{folder} is being written by {file.read().strip() or 'another process'}: "
                        "wait for it, or choose another --run folder.") from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file


def versions() -> dict[str, str]:
    out = {}
    for name in ("vtx-scale", "torch", "numpy", "safetensors"):
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            out[name] = "not installed"
    return out


def read(folder: Path) -> dict[str, Any]:
    """run.json. Raises UserError where the folder is no run folder."""
    try:
        return json.loads((folder / "run.json").read_text())
    except FileNotFoundError:
        raise UserError(f"{folder} is no run folder (no run.json in it): give the folder of 'vtx train --run'.") from None
    except ValueError:
        raise UserError(f"{folder}/run.json is not JSON: restore it, or train in another folder.") from None


def recipe_of(folder: Path) -> Run:
    """The recipe of a run; the folders of a stranger's recipe come on the path."""
    body = read(folder)
    recipes.let_import(body.get("paths", []))
    return override.from_dict(body["recipe"])


def prepare(run: Run, folder: Path, fingerprint: str, digest: str, fork: bool = False) -> None:
    """Write run.json, or see that the run in the folder is this one. A run that has saved nothing yet may become another.

    Raises UserError with the fields that differ where the recipe is another and `fork` is false.
    """
    forks = []
    if (folder / "run.json").exists():
        old = read(folder)
        same = old["hash"] == digest or rehashed(old, run, fingerprint) == digest or not begun(folder)
        if not same and not fork:
            differ = override.differences(override.from_dict(old["recipe"]), run)
            fields = "; ".join(f"{k} was {a!r}, is {b!r}" for k, (a, b) in differ.items() if learned(k))
            if old["data"] != fingerprint:
                fields = "; ".join(filter(None, [fields, f"the data set was {old['data']}, is {fingerprint}"]))
            raise UserError(f"{folder} holds another run ({fields}): choose another --run folder, "
                            "or pass --fork to go on from its checkpoint with the new recipe.")
        forks = old.get("forks", [])
        if not same:
            forks = [*forks, old["hash"]]
            with (folder / "ledger.jsonl").open("a") as f:
                f.write(json.dumps({"kind": "fork", "from": old["hash"], "to": digest}) + "\n")
    body = {"recipe": override.to_dict(run), "hash": digest, "forks": forks, "data": fingerprint, "paths": recipes.STRANGERS,
            "versions": versions()}
    write_whole(folder / "run.json", json.dumps(body, indent=1) + "\n")


def begun(folder: Path) -> bool:
    """Whether there is a checkpoint, even one that is damaged."""
    from vtx_scale.checkpoints.format import steps

    return bool(steps(folder / "checkpoints"))


def rehashed(old: dict[str, Any], run: Run, fingerprint: str) -> str:
    """The hash that an old run.json would get today: fields that did not exist then have their defaults."""
    from vtx_scale.launch.build import hash_of

    before = override.from_dict(old["recipe"])
    return hash_of(before, old["data"]) if old["data"] == fingerprint else ""


def learned(key: str) -> bool:
    """Whether a field counts in the hash."""
    head = key.split(".")[0]
    return head not in ("system", "checkpoint", "evaluate") and key not in override.UNCOUNTED


@dataclass(frozen=True)
class OpenRun:
    """A finished or running training, ready to be used: `probes["encode_image"](uint8 (N, H, W, 3))`."""

    folder: Path
    recipe: Run
    step: int
    model: "nn.Module"

    @property
    def probes(self) -> "dict[str, Callable[..., Any]]":
        return self.model.probes  # type: ignore[return-value]


def open_run(folder: str | Path) -> OpenRun:
    """The newest whole checkpoint of a run folder, on this process and device.

    Raises UserError where the folder is no run folder or has no whole checkpoint.
    """
    import torch

    from vtx_scale.checkpoints.read import Tensors, load, newest
    from vtx_scale.launch.build import build_objective
    from vtx_scale.strategies.single import Single
    from vtx_scale.trainer.precision import precision_of

    folder = Path(folder)
    run = recipe_of(folder)
    found = newest(folder / "checkpoints")
    if found is None:
        raise UserError(f"{folder} has no whole checkpoint: run its training first.")
    path, manifest = found
    device = torch.device("cpu")
    objective = build_objective(run, precision_of(run.system, device).weights)
    strategy = Single(device)
    strategy.prepare(objective)
    tensors = Tensors(path, manifest)
    wanted = {s.key for s in strategy.slices()}
    tensors.shapes = {k: v for k, v in tensors.shapes.items() if k in wanted}
    load(strategy.slices(), tensors)
    objective.eval()
    return OpenRun(folder, run, manifest["step"], objective)
