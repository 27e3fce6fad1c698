"""What a run takes from beside its folder, held to what it was.

The tokenizer's file lies in the folder as `tokenizer/NAME`, byte for byte, and is read from
there. Weights (`init.from`, a teacher, a codec) count by a digest: it stands in run.json, and in
the hash in place of their path. Standard library alone.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from vtx_scale.checkpoints.format import Damaged, read_manifest, sha256_file, steps
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.objects import AnyPath
from vtx_scale.data_pipeline.publish import whole
from vtx_scale.launch.paths import checkpoints_of
from vtx_scale.launch.places import cache_folder, place_at
from vtx_scale.specs.run import Run
from vtx_scale.specs.walk import shown

TOKENIZER = "data.tokenizer"
Entry = dict[str, Any]  # path, digest; of a run folder its hash and step, of a tokenizer its copy
Outside = dict[str, Entry]  # by key


def weights(run: Run) -> Iterator[tuple[str, str]]:
    """(key, path) of what gives a run its first values."""
    if run.init.from_:
        yield "init.from", run.init.from_
    for part in run.objective.pretrained:
        yield f"objective.{shown(part.source)}", getattr(run.objective, part.source)


def look(path: AnyPath) -> Entry | None:
    """What stands at a path now: a run folder by its newest checkpoint's manifest, else the weights
    by their bytes; None where there is nothing, and of weights in a bucket.
    """
    if (path / "run.json").is_file():
        return look_at_run(path)
    if not isinstance(path, Path):
        return None
    if path.is_file():
        return {"path": str(path), "digest": sha256_file(path)}
    if not path.is_dir():
        return None
    names = sorted(p.name for p in path.iterdir() if p.suffix in (".safetensors", ".json"))
    listed = [[name, sha256_file(path / name)] for name in names]
    return {"path": str(path), "digest": hashlib.sha256(json.dumps(listed).encode()).hexdigest()}


def look_at_run(path: AnyPath) -> Entry | None:
    """The same of a run folder; its checkpoints are verified where they are read."""
    stored = checkpoints_of(path)
    for step in reversed(steps(stored)):
        try:
            manifest = read_manifest(stored, step)
        except (Damaged, UserError):
            continue
        about = json.loads((path / "run.json").read_text())
        return {"path": str(path), "digest": manifest["sum"], "run": about["hash"], "step": step}
    return None


def unchanged(then: Entry, now: Entry) -> bool:
    """Whether what stood at a path still does; a run that has gone on since is the same."""
    if then["digest"] == now["digest"]:
        return True
    return "run" in then and then["run"] == now.get("run") and then["step"] < now["step"]


def weights_now(run: Run, before: Outside) -> Outside:
    """The entries of a run that starts now.

    before: those in its run.json, which stay while nothing changed, or where what they name is
    gone: a run that has begun has the values in its checkpoints.
    """
    found: Outside = {}
    for key, path in weights(run):
        then, now = before.get(key), look(place_at(path))
        if then is not None and (then["path"] == path if now is None else unchanged(then, now)):
            found[key] = {**then, "path": path}
        elif now is not None:
            found[key] = now
    return found


def by_digest(run: Run, outside: Outside) -> Run:
    """The run with digests in place of the paths of weights, as it is hashed and compared."""
    for key, path in weights(run):
        digest = outside[key]["digest"] if key in outside else path
        if key == "init.from":
            run = replace(run, init=replace(run.init, from_=digest))
        else:
            field = key.removeprefix("objective.")
            run = replace(run, objective=replace(run.objective, **{field: digest}))
    return run


def as_named(run: Run, outside: Outside) -> Run:
    """The run with its tokenizer as its user named it, where that file was copied from."""
    name = outside.get(TOKENIZER, {}).get("path", run.data.tokenizer)
    return replace(run, data=replace(run.data, tokenizer=name))


def changes(before: Outside, now: Outside) -> list[str]:
    """What is no longer what it was, a clause each that names both."""
    return [
        f"{key} was {sentence(before[key])}, is {sentence(now[key])}"
        for key in now
        if key in before and not unchanged(before[key], now[key])
    ]


def check_weights(run: Run, known: Outside) -> None:
    """Before first values are taken. Raises UserError where they are no longer what run.json says:
    a start that is repeated before the first checkpoint must not begin elsewhere.
    """
    kept = {key: entry for key, entry in known.items() if key != TOKENIZER}
    for change in changes(kept, weights_now(run, {})):
        raise UserError(f"{change}: put it back, or start the run again to take what is there.")


def sentence(entry: Entry) -> str:
    """An entry by its path and its digest."""
    return f"{entry['path']} ({entry['digest'][:12]})"


def held(run: Run, folder: AnyPath, outside: Outside) -> Run:
    """The run with the tokenizer that lies in its folder.

    outside: of its run.json; a folder of before has none, and reads the file that was named. Raises
    UserError where the copy is not what it was.
    """
    entry = outside.get(TOKENIZER)
    if entry is None:
        return run
    copy, kept = copy_of(folder, entry), folder.absolute() / entry["file"]
    try:
        if not isinstance(kept, Path) and not copy.exists():
            with whole(copy) as part:
                part.write_bytes(kept.read_bytes())
        digest = sha256_file(copy)
    except OSError as e:
        raise UserError(
            f"{kept} cannot be read ({e.strerror}): it is the tokenizer of this run, copied from "
            f"{entry['path']}; put it back."
        ) from None
    if digest != entry["digest"]:
        if not isinstance(kept, Path):
            copy.unlink(missing_ok=True)
        raise UserError(
            f"{kept} ({digest[:12]}) is not the tokenizer that this run was trained with, "
            f"{sentence(entry)}: put that file back."
        )
    return replace(run, data=replace(run.data, tokenizer=str(copy)))


def copy_of(folder: AnyPath, entry: Entry) -> Path:
    """The file of this machine from which a run's tokenizer is read: in its folder, or of a run in
    a bucket in the cache.
    """
    kept = folder.absolute() / entry["file"]
    if isinstance(kept, Path):
        return kept
    name = str(kept.name)
    return cache_folder() / "tokenizers" / str(entry["digest"]) / name
