"""`vtx data quarantine`: what a recipe's reader cannot use is masked unread from then on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vtx_scale.data_pipeline import quarantine
from vtx_scale.data_pipeline.batches import Reader, put, uniforms
from vtx_scale.data_pipeline.errors import BadSample, UserError
from vtx_scale.data_pipeline.index import Index
from vtx_scale.data_pipeline.opening import keep_again
from vtx_scale.data_pipeline.pool import Pool
from vtx_scale.data_pipeline.read import PASSING, ChunkReader
from vtx_scale.data_pipeline.shards import Shards
from vtx_scale.data_pipeline.tools.records import recorded
from vtx_scale.data_pipeline.tools.stats import parts_of


@dataclass(frozen=True)
class Judging:
    """Reads the samples of one shard after the other as a run would in its first epoch."""

    index: Index
    reader: Reader
    seed: int

    def __call__(self, part: tuple[int, int]) -> list[list[Any]]:
        """[number, id, reason] of each sample of a .. b-1 that a run would mask and that is not
        masked already.
        """
        chunks = ChunkReader(self.index)
        rows = {k: np.zeros((1, *v.shape), v.dtype) for k, v in self.reader.blank().items()}
        found: list[list[Any]] = []
        for g in range(*part):
            if g in self.index.bad:
                continue
            try:
                put(self.reader, chunks.sample(g), uniforms(self.seed, 0, g, 0), rows, 0)
            except BadSample as e:
                found.append([g, chunks.id(g), e.reason])
        chunks.close()
        return found


def put_in(
    shards: Shards,
    index: Index,
    reader: Reader,
    seed: int,
    about: Any,
    workers: int | Pool,
    tick: Callable[[int], None] = lambda shards: None,
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Put into quarantine what a reader cannot use; the lines of what is new there, and of what
    could not be judged, as nothing could be read or the reader failed: {"sample", "reason"}.

    index: of these shards, which masks them afterwards. about: names the reader, as JSON; what an
    earlier run found of the same set with it is not looked at again. tick: is called with the
    shards that are done. Raises UserError where nothing can be kept beside the index, and where no
    sample would be left.
    """
    root, prefix = beside(index)
    named = quarantine.stored(index, root, prefix)
    parts = parts_of(index)
    known = [index.digest.hex(), sorted(index.bad.items()), seed, about]
    work = Judging(index, reader, seed)
    new: list[dict[str, str]] = []
    passing: list[dict[str, str]] = []
    rows = recorded(work, parts, workers, (root, prefix), "quarantining", known)
    for done, found in enumerate(rows, 1):
        for g, name, reason in found:
            line = {"sample": name, "reason": reason}
            (passing if reason in PASSING else new).append(line)
            if reason not in PASSING:
                named[g] = name, reason
        tick(done)
    if new and len({*named, *index.bad}) == index.n:
        raise UserError(
            f"None of the {index.n:,} samples can be used, the first for {new[0]['reason']}: see "
            "that the recipe reads what the shards hold. Nothing was put into quarantine."
        )
    if new:
        quarantine.store(index, named)
        quarantine.marked(index, named)
        keep_again(index, shards)
    return new, passing


def lift(shards: Shards, index: Index) -> int:
    """Take everything out of quarantine; how many samples it was."""
    beside(index)
    count = sum(reason == quarantine.REASON for reason in index.bad.values())
    quarantine.store(index, {})
    quarantine.marked(index, ())
    keep_again(index, shards)
    return count


def beside(index: Index) -> Any:
    """(storage, prefix) of what lies beside an index. Raises UserError where it is not kept."""
    if index.beside is None:
        raise UserError(
            f"The index of {index.root} could not be stored, and so could no quarantine: make the "
            "folder or the cache writable."
        )
    return index.beside
