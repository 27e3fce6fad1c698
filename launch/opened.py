"""Data sets in buckets that were opened: one process of a run asks the server, and the others are
given what it was told, in a folder of this machine. No torch.
"""

import json
import os
from pathlib import Path

from vtx_scale.data_pipeline.codes import Coding, coding_of, parsed
from vtx_scale.data_pipeline.hold_out import kept, name_of
from vtx_scale.data_pipeline.index import Index, read, save
from vtx_scale.data_pipeline.remote import open_remote
from vtx_scale.data_pipeline.shards import Shards, read_whole
from vtx_scale.data_pipeline.storage import Folder, short_hash
from vtx_scale.launch.places import storage_at

KEPT = "VTX_OPENED"  # the folder that a launcher gives to its ranks
CLASSES = "classes.txt"

Opened = tuple[Index, list[str] | None]

_opened: dict[str, Opened] = {}  # by the list that was given; an evaluation asks again


def opened(shards: Shards) -> Opened:
    """The index of shards in a bucket, and the names of their classes.

    Raises UserError where they have no index, or were written anew since it was made.
    """
    if shards.title not in _opened:
        folder = os.environ.get(KEPT)
        at = Path(folder) / short_hash(shards.title) if folder else None
        there = at is not None and at.is_dir()
        _opened[shards.title] = given(at, shards) if at and there else ask(shards)
    return _opened[shards.title]


def ask(shards: Shards) -> Opened:
    """What the server says."""
    index = open_remote(shards)
    body = read_whole(shards.root, CLASSES)
    above = str(shards.root).rpartition("/")[0]
    if body is None and above.count("/") > 1:  # in the bucket
        body = read_whole(storage_at(above), CLASSES)
    return index, body.decode().splitlines() if body is not None else None


_codings: dict[str, Coding | None] = {}  # by places and names of shards


def coding(index: Index) -> Coding | None:
    """Of which codec the codes are that shards hold, None of pictures. Raises UserError as
    `coding_of` does.
    """
    which = short_hash("\n".join([str(index.root), *index.names]))
    if which not in _codings:
        folder = os.environ.get(KEPT)
        at = Path(folder) / f"codec-{which}.json" if folder else None
        if at is not None and at.is_file():
            body = at.read_bytes()
            _codings[which] = parsed(body, str(at)) if body else None
        else:
            _codings[which] = coding_of(index.root, index.names)
    return _codings[which]


def forget() -> None:
    """Let the next look at a data set ask the server: another run may find another."""
    _opened.clear()
    _codings.clear()


def keep(folder: Path, hold_out: float) -> None:
    """Write what this process has opened, for others: an index, its mask of this share (0 for none)
    and the classes, in a folder for each data set; and of which codec each set's codes are.
    """
    for which, codec in _codings.items():
        (folder / f"codec-{which}.json").write_bytes(codec.body() if codec is not None else b"")
    for title, (index, classes) in _opened.items():
        at = folder / short_hash(title)
        at.mkdir()
        save(index, at / "index")
        (at / "about.json").write_text(json.dumps({"classes": classes, "file": str(index.file)}))
        if hold_out and (mask := kept(index, hold_out)) is not None:
            (at / name_of(index, hold_out)).write_bytes(mask)


def given(folder: Path, shards: Shards) -> Opened:
    """What another process was told."""
    index = read(folder / "index", shards.root, shards.names or None)
    about = json.loads((folder / "about.json").read_text())
    index.file, index.beside = about["file"], (Folder(folder), "")
    return index, about["classes"]
