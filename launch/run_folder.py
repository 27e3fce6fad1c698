"""A run folder: who may write in it, and what it was made from. Standard library alone.

run.json metrics.jsonl ledger.jsonl evaluations.jsonl log.txt tensorboard/ pictures/
checkpoints/step-00000120/ control/ lease/
"""

import fcntl
import json
import os
import socket
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from vtx_scale.checkpoints.format import steps
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.launch import override, recipes
from vtx_scale.specs import walk
from vtx_scale.specs.run import Run
from vtx_scale.trainer.output import Ledger

HashOf = Callable[[Run, str], str]  # (run, fingerprint of its data) -> the run's name


def write_whole(path: Path, body: str) -> None:
    """Write a file so that a reader sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(body)
    os.replace(part, path)


def acquire_lease(folder: Path) -> IO[str]:
    """The right to write in a folder, for as long as the returned file is open or
    its process lives.

    Raises UserError, naming the holder, where another process of this host has it.
    """
    path = folder / "lease" / "local"
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        raise UserError(
            f"{folder} is being written by {file.read().strip() or 'another process'}: "
            "wait for it, or choose another --run folder."
        ) from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file


def versions() -> dict[str, str]:
    """Of the packages that decide what a run computes."""
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
        body: dict[str, Any] = json.loads((folder / "run.json").read_text())
        return body
    except FileNotFoundError:
        raise UserError(
            f"{folder} is no run folder (no run.json in it): give the folder of 'vtx train --run'."
        ) from None
    except ValueError:
        raise UserError(
            f"{folder}/run.json is not JSON: restore it, or train in another folder."
        ) from None


def recipe_of(folder: Path) -> Run:
    """The recipe of a run; the folders of a stranger's recipe come on the path."""
    body = read(folder)
    recipes.let_import(body.get("paths", []))
    run: Run = override.from_dict(body["recipe"])
    return run


def prepare(run: Run, folder: Path, fingerprint: str, hash_of: HashOf, fork: bool = False) -> None:
    """Write run.json, or see that the run in the folder is this one.

    A run that has saved nothing yet may become another.

    Raises UserError with the fields that differ where the recipe is another and `fork` is false.
    """
    forks: list[str] = []
    digest = hash_of(run, fingerprint)
    if (folder / "run.json").exists():
        old = read(folder)
        # the hash that an old run.json would get today: fields that did not exist then
        # have their defaults
        before: Run = override.from_dict(old["recipe"])
        same = digest in (old["hash"], hash_of(before, old["data"])) and old["data"] == fingerprint
        if not (same or fork or not begun(folder)):
            raise another_run(folder, before, run, old["data"], fingerprint)
        forks = old.get("forks", [])
        if not same and begun(folder):
            forks = [*forks, old["hash"]]
            Ledger(folder).write(kind="fork", **{"from": old["hash"], "to": digest})
    body = {
        "recipe": override.to_dict(run),
        "hash": digest,
        "forks": forks,
        "data": fingerprint,
        "paths": recipes.STRANGERS,
        "versions": versions(),
    }
    write_whole(folder / "run.json", json.dumps(body, indent=1) + "\n")


def another_run(folder: Path, before: Run, now: Run, data_before: str, data_now: str) -> UserError:
    """What differs, field by field."""
    differ = walk.differences(before, now)
    changes = [f"{key} was {a!r}, is {b!r}" for key, (a, b) in differ.items() if counted(key)]
    if data_before != data_now:
        changes.append(f"the data set was {data_before}, is {data_now}")
    return UserError(
        f"{folder} holds another run ({'; '.join(changes)}): choose another --run folder, "
        "or pass --fork to go on from its checkpoint with the new recipe."
    )


def begun(folder: Path) -> bool:
    """Whether there is a checkpoint, even one that is damaged."""
    return bool(steps(folder / "checkpoints"))


def counted(key: str) -> bool:
    """Whether a field counts in the hash."""
    return (
        key.split(".")[0] not in ("system", "checkpoint", "evaluate")
        and key not in override.UNCOUNTED
    )
