"""The fields of a recipe that name files and folders: no URLs, and absolute before they are kept,
so that they mean from anywhere what they meant where they were typed.

Standard library and specs alone.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, cast

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.lists import parts, refuse_scheme
from vtx_scale.data_pipeline.objects import AnyPath, storage_of
from vtx_scale.data_pipeline.paths import SCHEME, local_path
from vtx_scale.data_pipeline.shards import in_bucket
from vtx_scale.data_pipeline.storage import Storage
from vtx_scale.launch.places import storage_at
from vtx_scale.specs.run import Run
from vtx_scale.specs.spec import Spec
from vtx_scale.specs.walk import shown, specs

S = TypeVar("S", bound=Spec)
WORDS = ("", "required")  # of any such field


def named(spec: Spec) -> dict[str, tuple[str, ...]]:
    """Field -> words that are no path, of a spec's fields that name one file or folder."""
    pretrained = getattr(spec, "pretrained", ())  # an objective's
    return {**spec.paths, **{part.source: ("smoke",) for part in pretrained}}


def is_path(value: str, words: tuple[str, ...]) -> bool:
    """Whether a field's value is no word of its own; a word with a colon begins a longer one."""
    begins = tuple(word for word in words if word.endswith(":"))
    return value not in (*WORDS, *words) and not value.startswith(begins)


def given(run: Run) -> Iterator[tuple[str, str, bool]]:
    """(key, value, whether it is a list of shards) of every field that names a path."""
    for where, spec in [("", cast(Spec, run)), *specs(run)]:
        for name, words in named(spec).items():
            if is_path(value := getattr(spec, name), words):
                yield f"{where}{shown(name)}", value, False
        for name, words in spec.shard_lists.items():
            if is_path(value := getattr(spec, name), words):
                yield f"{where}{shown(name)}", value, True


def check_paths(run: Run) -> None:
    """Raises UserError where a URL stands for a path, but for s3:// of a run."""
    runs = {"init.from", *(f"objective.{shown(p.source)}" for p in run.objective.pretrained)}
    for key, value, several in given(run):
        if not several and key in runs and value.startswith("s3:"):
            storage_at(value)
        elif not several:
            local_path(value, f"{key}=")
        if not several:
            continue
        for part in [] if in_bucket(value) else parts(value):
            refuse_scheme(part)


def absolute(spec: S) -> S:
    """The same with absolute paths, from the folder that this process is in."""
    return changed(spec, absolute_path, absolute_list)


def changed(
    spec: S, path: Callable[[str], str], shards: Callable[[str], str] = lambda listed: listed
) -> S:
    """The same with each path, and each list of shards, changed by a function."""
    changes: dict[str, Any] = {}
    for f in fields(spec):
        value = getattr(spec, f.name)
        if is_dataclass(value):
            changes[f.name] = changed(cast(Spec, value), path, shards)
        elif isinstance(value, tuple) and value and is_dataclass(value[0]):
            parts = tuple(changed(cast(Spec, part), path, shards) for part in value)
            changes[f.name] = value if parts == value else parts
    changes |= rewritten(spec, named(spec), path)
    changes |= {n: path(v) for n in spec.functions if ".py:" in (v := getattr(spec, n))}
    changes |= rewritten(spec, spec.shard_lists, shards)
    changes = {k: v for k, v in changes.items() if v is not getattr(spec, k)}
    return replace(spec, **changes) if changes else spec


def rewritten(
    spec: Spec, names: Mapping[str, tuple[str, ...]], change: Callable[[str], str]
) -> dict[str, str]:
    """Those of these fields that hold a path, changed."""
    values = {name: getattr(spec, name) for name in names}
    return {n: change(v) for n, v in values.items() if is_path(v, names[n])}


def absolute_path(path: str) -> str:
    """From the root, with the user's home spelled out; links and `..` stay as they are."""
    if SCHEME.match(path) or "\0" in path:
        return path  # refused where it is opened
    path = os.path.expanduser(path)
    return path if os.path.isabs(path) else os.path.join(os.getcwd(), path)


def absolute_list(shards: str) -> str:
    """Entry by entry: a brace pattern or a glob of names below the present folder stays one."""
    if in_bucket(shards):
        return shards
    entries = parts(shards)
    if any(not entry for entry in entries):
        return shards  # refused where it is opened
    kept = [entry if remote(entry) else absolute_path(entry) for entry in entries]
    return shards if kept == entries else ("::" if "::" in shards else ",").join(kept)


def remote(entry: str) -> bool:
    """Whether an entry of a shard list has a scheme."""
    try:
        refuse_scheme(entry)
    except UserError:
        return True
    return False


def checkpoints_of(folder: AnyPath, scratch: str = "") -> Storage:
    """Where a run keeps its checkpoints. scratch: where their files wait that are on their way to a
    bucket; the temporary folder if empty.
    """
    return storage_of(folder / "checkpoints", scratch)


def lease_of(folder: AnyPath) -> Storage:
    """Where a run keeps the epochs of its lease."""
    return storage_of(folder / "lease")
