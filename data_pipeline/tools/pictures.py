"""`vtx data build` of a folder of pictures: its subfolders are classes."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.foreign import PICTURES
from vtx_scale.data_pipeline.storage import Storage
from vtx_scale.data_pipeline.tools.packing import Input, Left, named
from vtx_scale.data_pipeline.tools.rows import sample_of
from vtx_scale.data_pipeline.tools.shards import Sample
from vtx_scale.data_pipeline.tools.sides import ALL, Side, shuffled
from vtx_scale.data_pipeline.tools.unread import unread, without_pictures

HIDDEN = re.compile(r"(?:^|/)[._]")  # also what a Mac keeps beside a file
FIRST = 1 << 16  # bytes of a caption that count
SPLITS = ("train", "training", "val", "valid", "validation", "test", "dev")
MAKE = "make JPEGs of them"  # what cannot be read


@dataclass(frozen=True)
class Files:
    """Reads a unit: (number of its first file, names, whether each has a caption beside it)."""

    storage: Storage
    classes: dict[str, int]
    side: Side = ALL

    def __call__(self, unit: tuple[int, list[str], list[str]]) -> Iterator[Sample | Left]:
        """A sample a file, or why it is left out."""
        first, names, captions = unit
        for i, name in enumerate(names):
            if not self.side.takes(name):
                continue
            label = name.partition("/")[0] if self.classes else None
            caption = None
            if captions[i]:
                body = self.storage.get_range(captions[i], 0, FIRST)
                caption = body.decode("utf-8-sig", "replace")
            yield sample_of(self.storage, first + i, name, name, caption, label, self.classes)


def pictures_of(storage: Storage, every: list[str], each: int, side: Side = ALL) -> Input:
    """The pictures of a folder and below it that lie on a side, in the order of a hash of their
    names, of `each` a shard: so each shard holds pictures of all classes.

    every: the names of all files. Where no picture lies in the folder itself its subfolders are
    classes, numbered by their names. A `.txt` of the same name beside a picture is its caption.
    Raises UserError where there are none, where some lie beside folders of others without
    captions, and where the subfolders are the splits of a set.
    """
    every = [name for name in every if not HIDDEN.search(name)]
    names = shuffled([name for name in every if name.lower().endswith(PICTURES)])
    unreadable = unread(every)
    if not names:
        if unreadable:
            raise UserError(f"{storage} holds no picture that can be read ({unreadable}): {MAKE}.")
        raise UserError(f"{storage} holds neither pictures nor tars nor tables: look at the path.")
    written = {name[:-4] for name in every if name.endswith(".txt")}
    beside = [name.rpartition(".")[0] for name in names]
    captions = [f"{stem}.txt" if stem in written else "" for stem in beside]
    found: set[str] = set()
    loose = [name for name in names if "/" not in name]
    if 0 < len(loose) < len(names) and not all(captions):
        raise UserError(
            f"{storage} holds {len(loose)} pictures beside its folders ({loose[0]}): are the "
            "folders classes, move them into one; else move all pictures into one folder."
        )
    if not loose:
        found = {name.partition("/")[0] for name in names}
    refuse_splits(str(storage), found)
    classes = {name: i for i, name in enumerate(sorted(found))}
    units = [(a, names[a : a + each], captions[a : a + each]) for a in range(0, len(names), each)]
    about = {"pictures": names, "captions": captions, "each": each, **side.about()}
    labels = f"labels from {len(classes):,} folders" if classes else "no labels"
    texts = f"captions from {len(names) - captions.count(''):,} .txt" if any(captions) else ""
    guess = f"{storage}: {len(names):,} pictures, {texts or 'no captions'}, {labels}."
    if unreadable:
        guess += f" {unreadable}: {MAKE}."
    if classes and (empty := without_pictures(storage, every, classes)):
        guess += f" No picture lies in {', '.join(empty[:5])}{' ...' * (len(empty) > 5)}: no class."
    read = Files(storage, classes, side)
    holds = any(captions), bool(classes), len(classes)
    return Input(about, units, len(units), read, named(classes), guess=guess, holds=holds)


def refuse_splits(root: str, folders: set[str]) -> None:
    """Raises UserError where subfolders are the splits of a set and no classes, with a command for
    each.
    """
    if not folders or any(name.lower() not in SPLITS for name in folders):
        return
    sides = sorted(folders, key=lambda name: SPLITS.index(name.lower()))
    commands = [
        f"'{shlex.join(['vtx', 'data', 'build', f'{root}/{name}', f'shards/{name}'])}'"
        for name in sides
    ]
    raise UserError(
        f"{root} holds {' and '.join(sides)}, which are splits and no classes: "
        f"{' and '.join(commands)} make a set of each."
    )
