"""`vtx data repack`: a set, or compressed tars, as another set."""

import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from lzma import LZMAError
from pathlib import Path
from typing import Any

from vtx_scale.data_pipeline.codes import FILE, coding_of
from vtx_scale.data_pipeline.errors import BadSample, UserError, described, judged
from vtx_scale.data_pipeline.foreign import PACKED
from vtx_scale.data_pipeline.index import Index
from vtx_scale.data_pipeline.lists import MAGIC, braces
from vtx_scale.data_pipeline.read import PASSING, ChunkReader, unread
from vtx_scale.data_pipeline.scan import shown
from vtx_scale.data_pipeline.shards import Shards, read_whole
from vtx_scale.data_pipeline.storage import File, Folder, Storage
from vtx_scale.data_pipeline.tar import Problem, samples
from vtx_scale.data_pipeline.tools.packing import CLASSES, Input, Left
from vtx_scale.data_pipeline.tools.shards import Sample
from vtx_scale.data_pipeline.tools.shrink import Edit
from vtx_scale.data_pipeline.tools.stream import file_of, unpacked


@dataclass(frozen=True)
class Numbers:
    """Reads the samples a .. b-1 of an index."""

    index: Index
    edit: Edit

    def __call__(self, unit: tuple[int, int]) -> Iterator[Sample | Left]:
        """A sample, or why it is left out: quarantined ones among them.

        Raises UserError where one could not be read, which another look may find sound.
        """
        reader = ChunkReader(self.index)
        try:
            for g in range(*unit):
                try:
                    members = reader.sample(g)
                    key = members["__key__"]
                    plain = {k: v for k, v in members.items() if not k.startswith("__")}
                    yield key, judged("picture", self.edit, plain)
                except BadSample as e:
                    if e.reason in PASSING:
                        raise unread(reader.id(g), e.reason) from None
                    yield Left(reader.id(g), e.reason, shown(e.detail))
        finally:
            reader.close()


def set_again(index: Index, edit: Edit, about: dict[str, Any], each: int) -> Input:
    """The samples of a set in their order, `each` in a shard but for those that are left out.

    about: what `edit` does, as JSON. Keys and members stay as they are, with pictures by `edit`; so
    do the names of classes and of the codec of codes. Raises UserError for codes that are not all
    there, or of several codecs.
    """
    units = [(a, min(a + each, index.n)) for a in range(0, index.n, each)]
    known = {"digest": index.digest.hex(), "bad": sorted(index.bad.items()), "each": each}
    beside = classes_of(index)
    if coding := coding_of(index.root, index.names):
        beside[FILE] = replace(coding, shards=len(units)).body()
    return Input({**known, **about}, units, len(units), Numbers(index, edit), beside)


def classes_of(index: Index) -> dict[str, bytes]:
    """The file of the names of classes beside the shards of a set, or one folder up."""
    shards = Shards(index.root, index.names, "")
    folder = index.names[0].rpartition("/")[0]
    places = [(index.root, f"{folder}/{CLASSES}".lstrip("/")), (index.root, CLASSES)]
    if not shards.remote:
        places.append((Folder(shards.local(".").absolute().parent), CLASSES))
    for root, name in places:
        if body := read_whole(root, name):
            return {CLASSES: body}
    return {}


@dataclass(frozen=True)
class Archive:
    """Reads a compressed tar."""

    storage: Storage
    edit: Edit

    def __call__(self, name: str) -> Iterator[Sample | Left]:
        """A sample, or what is wrong with one or with the archive."""
        with tempfile.TemporaryDirectory(prefix="vtx-repack-") as folder:
            path = Path(folder) / "plain.tar"
            if fault := self.unpack(name, path):
                yield Left(name, "compressed", fault)
            with File(path) as shard:
                for item in samples(shard):
                    if isinstance(item, Problem):
                        yield Left(f"{name} byte {item.offset}", item.reason, shown(item.detail))
                    elif item.reason:
                        yield Left(f"{name}/{shown(item.key)}", item.reason)
                    else:
                        yield self.edited(name, item.key, shard, item.members)

    def edited(
        self, name: str, key: str, shard: File, members: dict[str, tuple[int, int]]
    ) -> Sample | Left:
        """A sample by the places of its members."""
        plain = {k: shard.read(*place) for k, place in members.items()}
        try:
            return key, judged("picture", self.edit, plain)
        except BadSample as e:
            return Left(f"{name}/{shown(key)}", e.reason, shown(e.detail))

    def unpack(self, name: str, path: Path) -> str:
        """Write what is in an archive to a file, as far as it goes; what stops it, or ""."""
        with self.storage.open(name) as source, file_of(source) as file, path.open("wb") as out:
            try:
                with unpacked(file) as stream:
                    while body := stream.read1(1 << 20):  # what comes before a fault is kept
                        out.write(body)
            except (EOFError, zlib.error, LZMAError, ValueError) as e:
                return described(e)
            except OSError as e:
                if e.errno is not None:  # of the disk, or of the storage
                    raise
                return described(e)
        return ""


def archives(storage: Storage, pattern: str) -> list[str]:
    """The compressed tars of a place: all that lie directly in it, or those of a pattern.

    pattern: braces, `*`, `?` and `[...]`; "" is all. Raises UserError where one is not there.
    """
    every = [name for name in storage.list("") if name.lower().endswith(PACKED)]
    if not pattern:
        return [name for name in every if "/" not in name and not name.startswith(".")]
    found: list[str] = []
    for name in braces(pattern):
        hits = [x for x in every if x == name or (MAGIC(name) and fnmatchcase(x, name))]
        if not hits:
            raise UserError(f"{storage}/{name} is not there: look at the path and the pattern.")
        found += hits
    return found


def unpacked_set(
    storage: Storage, names: list[str], edit: Edit, about: dict[str, Any], each: int
) -> Input:
    """The samples of compressed tars: a shard for each of them, several where it holds more than
    `each` samples and that is not 0.
    """
    heads = [(name, storage.head(name)) for name in names]
    known = {"archives": [[name, head.tag if head else ""] for name, head in heads], "each": each}
    classes = read_whole(storage, CLASSES)
    beside = {CLASSES: classes} if classes else {}
    return Input({**known, **about}, names, len(names), Archive(storage, edit), beside, each)
