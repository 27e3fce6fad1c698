"""`vtx data build` of a folder of pictures: its subfolders are classes."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.foreign import PICTURES
from vtx_scale.data_pipeline.storage import Storage
from vtx_scale.data_pipeline.tools.packing import Input, Left, named
from vtx_scale.data_pipeline.tools.rows import sample_of
from vtx_scale.data_pipeline.tools.shards import Sample
from vtx_scale.data_pipeline.tools.sides import ALL, Side, shuffled

HIDDEN = re.compile(r"(?:^|/)[._]")  # also what a Mac keeps beside a file
FIRST = 1 << 16  # bytes of a caption that count


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
    Raises UserError where there are none, and where some lie beside folders of others without
    captions.
    """
    every = [name for name in every if not HIDDEN.search(name)]
    names = shuffled([name for name in every if name.lower().endswith(PICTURES)])
    if not names:
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
    classes = {name: i for i, name in enumerate(sorted(found))}
    units = [(a, names[a : a + each], captions[a : a + each]) for a in range(0, len(names), each)]
    about = {"pictures": names, "captions": captions, "each": each, **side.about()}
    labels = f"labels from {len(classes):,} folders" if classes else "no labels"
    texts = f"captions from {len(names) - captions.count(''):,} .txt" if any(captions) else ""
    guess = f"{storage}: {len(names):,} pictures, {texts or 'no captions'}, {labels}."
    read = Files(storage, classes, side)
    holds = any(captions), bool(classes), len(classes)
    return Input(about, units, len(units), read, named(classes), guess=guess, holds=holds)
