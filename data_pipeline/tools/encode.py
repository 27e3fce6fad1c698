"""`vtx data encode`: shards of pictures to shards of their codes.

A shard is written whole or is absent, so that the same command goes on where it ended; its bytes
depend on the pictures and the codec alone. Which codec it is, the caller says.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vtx_scale.data_pipeline.batches import Batches, Reader
from vtx_scale.data_pipeline.codes import FILE, MEMBER, Coding, coding_in, packed
from vtx_scale.data_pipeline.errors import BadSample, UserError
from vtx_scale.data_pipeline.index import Index
from vtx_scale.data_pipeline.loader import Loader
from vtx_scale.data_pipeline.members import TEXTS
from vtx_scale.data_pipeline.order import Int
from vtx_scale.data_pipeline.pool import Pool
from vtx_scale.data_pipeline.read import PASSING, Members, unread
from vtx_scale.data_pipeline.scan import shown
from vtx_scale.data_pipeline.sources import Samples
from vtx_scale.data_pipeline.storage import Storage
from vtx_scale.data_pipeline.tools.shards import Sample, write_tar

# pixels (B, S, S, 3) uint8 -> (B, h, h) codes
Coder = Callable[[NDArray[np.uint8]], NDArray[Any]]
SIZE = 8  # pictures a batch: the codec's widest layer takes 64 MiB a picture of 256 x 256


class ByShard:
    """Every sample once in tar order, a batch of one shard alone: what a batch holds, and so what
    is computed of it, does not depend on where reading begins.

    steps (S + 1,): the first of each shard.
    """

    lanes = window = 1

    def __init__(self, index: Index, size: int) -> None:
        self.first = index.sample_first[index.chunk_first]  # (S + 1,)
        counts = np.diff(self.first)
        self.steps = np.concatenate([[0], np.cumsum(-(-counts // size))])

    def ids(self, positions: Int) -> Int:
        """The positions."""
        return positions

    def epochs(self, positions: Int) -> Int:
        """The first."""
        return np.zeros_like(positions)

    def share(self, step: int, batch: int, rank: int, world: int, offset: int = 0) -> Int:
        """The samples of a step, -1 behind the last of its shard; of one rank alone."""
        shard = int(np.searchsorted(self.steps, step, side="right")) - 1
        at = self.first[shard] + (step - self.steps[shard]) * batch + np.arange(batch)
        return np.where(at < self.first[shard + 1], at, -1)


@dataclass(frozen=True)
class Encoded:
    """What `encode` did: shards that it wrote and that were there, samples of those that it wrote,
    and how many were left out of them.
    """

    wrote: int
    there: int
    samples: int
    bad: int


def encode(
    index: Index,
    reader: Reader,
    coder: Coder,
    out: Storage,
    coding: Coding,
    keep: tuple[str, ...] = (),
    say: Callable[[str], None] = lambda line: None,
    workers: int = 0,
    pool: Pool | None = None,
) -> Encoded:
    """Write the codes of every picture of `index` to shards of the same names in `out`.

    reader: gives "image", (S, S, 3) or (views, S, S, 3) uint8. coding: what `codec.json` says,
    without its shards. keep: places of captions and labels (`data.caption`), whose members go along
    with txt, cap, json and cls. say: takes a line for people: a shard that is written, a sample
    that is left out because it cannot be used. workers: processes that read. pool: encodes a shard
    a unit, reading too.

    Raises UserError where `out` holds other codes, or a shard cannot be read.
    """
    folders = sorted({name.rpartition("/")[0] for name in index.names})
    for folder in folders:
        begin(out, folder, coding)
    work = Encoding(index, reader, coder, out, coding, keep, 0 if pool else workers)
    missing = [s for s, name in enumerate(index.names) if out.head(name) is None]
    samples = bad = 0
    done = pool(work, missing) if pool else (work.span(*run, say) for run in runs(missing))
    for part in done:
        for line in part.lines:
            say(line)
        samples, bad = samples + part.samples, bad + part.bad
    for folder in folders:
        count = sum(name.rpartition("/")[0] == folder for name in index.names)
        out.put(f"{folder}/{FILE}".lstrip("/"), replace(coding, shards=count).body())
    return Encoded(len(missing), len(index.names) - len(missing), samples, bad)


@dataclass(frozen=True)
class Part:
    """What became of some shards, and the lines on them that nobody has heard."""

    samples: int
    bad: int
    lines: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Encoding:
    """Encodes shards by their numbers; the parts are those of `encode`."""

    index: Index
    reader: Reader
    coder: Coder
    out: Storage
    coding: Coding
    keep: tuple[str, ...]
    workers: int

    def __call__(self, shard: int) -> Part:
        """One, with its lines."""
        lines: list[str] = []
        part = self.span(shard, shard + 1, lines.append)
        return replace(part, lines=lines)

    def span(self, first: int, end: int, say: Callable[[str], None]) -> Part:
        """Consecutive ones, read without a pause between them. Raises as `encode`."""
        order = ByShard(self.index, SIZE)
        batches = Batches(self.index, order, self.reader, SIZE, 0, 1, self.coding.seed)
        texts = Samples([self.index]) if self.workers else batches.chunk_reader()
        begins, ends = int(order.steps[first]), int(order.steps[end])
        loader = Loader(batches, start=begins, stop=ends, workers=self.workers)
        samples = bad = 0
        try:
            for s in range(first, end):
                until, name = int(order.steps[s + 1]), self.index.names[s]
                rows, left_out = rows_of(loader, until, self.coder, self.coding, say)
                write(self.out, name, (sample(texts, g, self.keep, b) for g, b in rows))
                samples, bad = samples + len(rows), bad + left_out
                say(f"{shown(name)}: {len(rows)} samples")
        finally:
            loader.close()
            texts.close()
        return Part(samples, bad)


def begin(out: Storage, folder: str, coding: Coding) -> None:
    """Put the unfinished `codec.json` of a folder there, unless it is.

    Raises UserError where the folder holds codes of another codec, crop or set, or other shards.
    """
    there = coding_in(out, folder)
    if there is None:
        taken = next((name for name in out.list(f"{folder}/" if folder else "") if tar(name)), None)
        if taken is not None:
            raise UserError(f"{out} holds {taken} and no {FILE}: give an empty folder.")
        out.put(f"{folder}/{FILE}".lstrip("/"), coding.body())
        return
    compared = [f.name for f in fields(Coding) if f.name not in ("codec", "shards")]
    other = [name for name in compared if getattr(there, name) != getattr(coding, name)]
    if other:
        have, want = (
            f"{c} with " + ", ".join(f"{name} {getattr(c, name)}" for name in other)
            for c in (there, coding)
        )
        raise UserError(
            f"{out} holds codes of {have}, and these would be of {want}: give another folder, or "
            "the command that began it."
        )


def tar(name: str) -> bool:
    """Whether an object is named as a shard."""
    return name.endswith(".tar")


def runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """(first, end) of each run of consecutive numbers."""
    first = 0
    for i in range(1, len(numbers) + 1):
        if i == len(numbers) or numbers[i] != numbers[i - 1] + 1:
            yield numbers[first], numbers[i - 1] + 1
            first = i


def rows_of(
    loader: Loader, end: int, coder: Coder, coding: Coding, say: Callable[[str], None]
) -> tuple[list[tuple[int, bytes]], int]:
    """(number, member) of each sample of the batches up to step `end`, and how many were left out.

    Raises UserError where what is left out could be read another time.
    """
    rows, bad = [], 0
    while loader.step < end:
        batch = loader.next()
        for entry in batch.bad:
            if entry["kind"] != "sample":
                continue
            where = f"{entry['shard']}/{entry['key']}"
            if entry["reason"] in (*PASSING, "worker_died"):
                raise unread(where, entry["reason"])
            bad += 1
            say(f"{where}: {entry['reason']} {shown(entry.get('detail', ''))}, left out".strip())
        pixels = batch["image"].numpy()
        views = pixels if pixels.ndim == 5 else pixels[:, None]
        codes = np.stack([coder(views[:, v]) for v in range(views.shape[1])], axis=1)
        codes = codes.reshape(*codes.shape[:2], -1)
        for i in np.flatnonzero(batch.valid.numpy()).tolist():
            rows.append((int(batch.ids[i]), packed(codes[i], coding.vocab)))
    return rows, bad


def sample(texts: Samples, g: int, keep: tuple[str, ...], codes: bytes) -> Sample:
    """Sample g with codes in place of its picture. Raises UserError where it is gone by now."""
    try:
        members = texts.sample(g)
    except BadSample as e:
        raise UserError(
            f"{texts.id(g)} could not be read a second time ({e}): look at the disk, then run the "
            "same command again."
        ) from None
    return members["__key__"], {MEMBER: codes, **texts_of(members, keep)}


def texts_of(members: Members, keep: tuple[str, ...]) -> dict[str, bytes]:
    """The members that hold captions and labels."""
    kept = (*TEXTS, *keep)
    return {
        name: body
        for name, body in members.items()
        if not name.startswith("__")
        and any(place == name or place.startswith(f"{name}.") for place in kept)
    }


def write(out: Storage, name: str, samples: Iterator[Sample]) -> None:
    """A shard, whole or not at all."""
    with out.scratch(name) as path:
        write_tar(path, samples)
        out.put_file(name, path)
