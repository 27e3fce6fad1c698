"""`vtx train` on what are no shards yet: with --yes shards are made of it, in this user's
cache.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from vtx_scale.data_pipeline.errors import NotShards, UserError
from vtx_scale.data_pipeline.foreign import build_command
from vtx_scale.data_pipeline.index import UNFINISHED
from vtx_scale.data_pipeline.opening import open_index
from vtx_scale.data_pipeline.storage import Folder
from vtx_scale.data_pipeline.system import processors
from vtx_scale.data_pipeline.tools.packing import CLASSES, DONE, Input, Line, pack
from vtx_scale.launch.class_counts import class_count
from vtx_scale.launch.few import Few
from vtx_scale.launch.next_step import fitting
from vtx_scale.launch.places import cache_folder, shards_at
from vtx_scale.launch.progress import progress
from vtx_scale.launch.raw_sets import Asked, inputs
from vtx_scale.specs.objective import ObjectiveSpec
from vtx_scale.specs.run import Run

SETTLED = ("", "toy", "required")
Say = Callable[[str], None]
Fits = Callable[[str, Input], None]


def shards_made(run: Run, say: Say) -> Run:
    """The run with shards in the place of what are none: made in the cache, whole, or found there
    where the source has not changed.

    say: takes where they lie, and what is left out of them. Raises UserError.
    """
    data = run.data
    fits = partial(check_needs, run.objective)
    if data.sources:
        sources = tuple(replace(s, shards=made_of(s.shards, say, fits)) for s in data.sources)
        return replace(run, data=replace(data, sources=sources))
    train, val = made_of(data.shards, say, fits), made_of(data.val_shards, say, fits)
    if val != data.val_shards and (lists := [listed(x) for x in (train, val)])[0] != lists[1]:
        raise UserError(
            f"{data.shards} and {data.val_shards} have other classes: leave data.val_shards out "
            "and add data.hold_out=0.05, or make one source of both and 'vtx data build --val'."
        )
    return replace(run, data=replace(data, shards=train, val_shards=val))


def listed(shards: str) -> str:
    """The classes.txt of a folder of shards, "" where there is none."""
    path = Path(shards) / CLASSES
    return path.read_text() if path.is_file() else ""


def check_needs(objective: ObjectiveSpec, source: str, found: Input) -> None:
    """Raises UserError where an objective learns from captions or labels that a source lacks, with
    a recipe that learns from what is there.
    """
    captions, labels, classes = found.holds
    lacks = ""
    if not captions and "caption" in (objective.data_fields or ()):
        lacks = "captions"
    elif not labels and class_count(objective):
        lacks = "labels"
    if lacks:
        recipe = " ".join(fitting(captions, labels, classes))
        have = "labels" if labels else "captions" if captions else "pictures alone"
        raise UserError(
            f"{objective.title()} learns from {lacks}, and {source} holds {have}: {recipe} learns "
            "from those."
        )


def made_of(shards: str, say: Say, fits: Fits) -> str:
    """The shards of a value of `data.shards`, which is given back where it names some."""
    if shards in SETTLED:
        return shards
    try:
        shards_at(shards)
    except NotShards as fault:
        return made(fault.source, say, fits)
    except UserError:
        pass  # said where it is read
    return shards


def made(source: str, say: Say, fits: Fits = lambda source, found: None) -> str:
    """The folder of the cache that holds the shards of a source.

    fits: raises UserError where they would be of no use. Raises UserError.
    """
    sets = inputs(source, Asked(), say)
    if sets is None or source.lower().startswith("s3:"):
        raise UserError(f"{source}: --yes takes what lies here: run '{build_command(source)}'.")
    found = sets[-1][1]
    fits(source, found)
    folder = cache_folder() / "built" / f"{name_of(source)}-{digest(source, found)}"
    if (folder / DONE).is_file() and not (folder / UNFINISHED).exists():
        say(f"{source}: its shards lie in {folder}")
        return str(folder)
    say(f"{source}: making shards in {folder}")
    say(found.guess)
    if found.warning:
        say(found.warning)
    packed(found, folder, say)
    return str(folder)


def name_of(source: str) -> str:
    """The last name of a source, for people who look into the cache."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", os.path.basename(os.path.abspath(source)))[:60]


def digest(source: str, found: Input) -> str:
    """Names a source as it is now: sizes and times of its pictures, tags of its tables."""
    files = found.about.get("pictures", [])
    root = os.path.abspath(source)
    about = [root, found.about, sorted(found.beside), [tag(Path(root, x)) for x in files]]
    about.append([tag(Path(root, x)) for x in found.about.get("captions", []) if x])
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def tag(path: Path) -> str:
    """What changes when a file is written anew."""
    status = path.stat()
    return f"{status.st_mtime_ns:x}-{status.st_ino:x}-{status.st_size:x}"


def packed(found: Input, folder: Path, say: Say) -> None:
    """Write a set; what is left out is counted, and the first of each reason named."""
    few = Few(say)

    def left_out(line: Line) -> None:
        few(line["reason"], f"{line['row']}: {line['reason']} {line.get('detail', '')}".rstrip())

    workers = min(processors(), found.count)
    try:
        with progress("shards", found.count) as tick:
            pack(Folder(folder), found, workers, lambda: open_index(str(folder)), left_out, tick)
    finally:
        few.end()
    if left := few.counts.total():
        say(f"{left:,} rows are left out, which cannot be used")
