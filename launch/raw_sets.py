"""What a user has that are no shards yet: pictures, tables and data sets of Hugging Face's, as the
inputs of sets.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.foreign import PACKED, PICTURES, SAVED, TABLES
from vtx_scale.data_pipeline.paths import SCHEME
from vtx_scale.data_pipeline.storage import Folder, Storage
from vtx_scale.data_pipeline.tools.columns import Columns
from vtx_scale.data_pipeline.tools.hub import HUB, of_hub
from vtx_scale.data_pipeline.tools.packing import Input
from vtx_scale.data_pipeline.tools.pictures import pictures_of
from vtx_scale.data_pipeline.tools.sides import ALL, Side
from vtx_scale.data_pipeline.tools.tables import tables
from vtx_scale.launch.places import storage_at

SAMPLES = 5_000  # of a shard
Say = Callable[[str], None]


@dataclass(frozen=True)
class Asked:
    """What a user asks of a source: the columns, the split that is meant ("" for train), what goes
    to the validation set ("" for nothing, a share, or the name of a split), the samples of a shard.
    """

    columns: Columns = Columns()
    split: str = ""
    val: str = ""
    each: int = SAMPLES


def inputs(source: str, asked: Asked, say: Say) -> list[tuple[str, Input]] | None:
    """("train" or "val", what it is made from) of the sets that are asked for, the validation set
    first; None of a source that are shards, packed or not.

    say: takes a sentence on what is left out. Raises UserError where nothing of the kind is there.
    """
    splits = found_in(source, asked.columns, say)
    if splits is None:
        return None
    meant = split_of(splits, asked.split, source, "--split")
    share = share_of(asked.val)
    if share:
        held = round(asked.each / share)
        return [
            ("val", splits[meant](held, Side(share, True))),
            ("train", splits[meant](asked.each, Side(share))),
        ]
    sets = [("train", splits[meant](asked.each, ALL))]
    if asked.val:
        val = split_of(splits, asked.val, source, "--val")
        return [("val", splits[val](asked.each, ALL)), *sets]
    if rest := [name for name in splits if name != meant]:
        say(f"{source}: {meant} is taken; --val {rest[0]} takes {rest[0]} too, beside it.")
    return sets


def share_of(val: str) -> float:
    """The share that --val names, 0.0 where it names a split or nothing. Raises UserError."""
    try:
        share = float(val or 0)
    except ValueError:
        return 0.0
    if val and not 0 < share < 1:
        raise UserError(f"--val {val}: give a share between 0 and 1, or the name of a split.")
    return share


Maker = Callable[[int, Side], Input]


def split_of(splits: dict[str, Maker], name: str, source: str, option: str) -> str:
    """The name of a split: "train" or the only one where none is given. Raises UserError."""
    if not name:
        name = "train" if "train" in splits else next(iter(splits))
    if name not in splits:
        have = ", ".join(filter(None, splits)) or "no splits: give a share such as 0.05"
        raise UserError(f"{option} {name}: {source} has {have}.")
    return name


def found_in(source: str, columns: Columns, say: Say) -> dict[str, Maker] | None:
    """What a source is: by the name of each split ("" where it has none) what makes the input of a
    set of it; None of shards.
    """

    def rows(storage: Storage, names: list[str]) -> Maker:
        return lambda each, side: tables(storage, names, columns, each, side)

    if HUB.match(source):
        found = of_hub(source, say)
        return {split: rows(Folder(root), names) for split, (root, names) in found.items()}
    root, name = parted(source, TABLES)
    if name:
        return {"": rows(storage_at(root), [name])}
    if not is_folder(source):
        if not SCHEME.match(source) and not os.path.exists(source) and source.count("/") < 2:
            if not set("*?[{,:") & set(source):
                raise UserError(
                    f"{source} does not exist: look at the path; a data set of Hugging Face's hub "
                    f"is named hf:{source}."
                )
        return None
    storage = storage_at(source)
    every = list(storage.list(""))
    if any("/" not in x and x.endswith((".tar", *PACKED)) for x in every):
        return None
    if saved := saved_splits(storage, every):
        return {split: rows(storage, names) for split, names in saved.items()}
    names = sorted(x for x in every if x.lower().endswith(TABLES))
    if names and not any(x.lower().endswith(PICTURES) for x in every):
        return {"": rows(storage, names)}
    if names:
        say(f"{source}: pictures are taken, {names[0]} is not: give it as SOURCE to use it.")
    return {"": lambda each, side: pictures_of(storage, every, each, side)}


def saved_splits(storage: Storage, every: list[str]) -> dict[str, list[str]]:
    """The Arrow tables of each split of what `save_to_disk` wrote, "" of one data set; {} where it
    wrote nothing here. Raises UserError where a file is torn.
    """
    several, one = SAVED
    if several in every:
        splits = [str(name) for name in read(storage, several)["splits"]]
        return {split: saved_tables(storage, f"{split}/{one}") for split in splits}
    return {"": saved_tables(storage, one)} if one in every else {}


def saved_tables(storage: Storage, state: str) -> list[str]:
    """The tables that a `state.json` names, in order."""
    folder = state.rpartition("/")[0]
    names = [str(file["filename"]) for file in read(storage, state)["_data_files"]]
    return [f"{folder}/{name}" if folder else name for name in names]


def read(storage: Storage, name: str) -> Any:
    """A file of JSON. Raises UserError where it is none."""
    try:
        with storage.open(name) as found:
            return json.loads(found.read(0, found.size))
    except (OSError, ValueError):
        raise UserError(f"{storage}/{name} cannot be read: save the data set anew.") from None


def is_folder(place: str) -> bool:
    """Whether a place is a folder: in a bucket what has not the name of a file."""
    if not SCHEME.match(place):
        return Path(place).is_dir()
    return not place.lower().endswith((".tar", *PACKED, *TABLES))


def parted(place: str, endings: tuple[str, ...]) -> tuple[str, str]:
    """(the folder, the last name) of a place whose name has such an ending, else ("", "")."""
    root, slash, name = place.rpartition("/")
    if not name.lower().endswith(endings) or is_folder(place):
        return "", ""
    return root or slash or ".", name
