"""webdataset at both ends: our order as the source of its pipelines,
and its stages inside our workers.

`Source` is an IterableDataset for the first place of a `wds.DataPipeline`; `Staged` puts a
list of stages in front of a `Reader`. Nothing of webdataset is imported but where a pipeline
of it is built.
"""

import random
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from vtx_scale.data_pipeline.batches import Reader
from vtx_scale.data_pipeline.errors import BadSample, UserError, judged
from vtx_scale.data_pipeline.members import CAPTION, LABEL
from vtx_scale.data_pipeline.opening import open_index
from vtx_scale.data_pipeline.order import Order
from vtx_scale.data_pipeline.read import ChunkReader, Draw, Members, Row
from vtx_scale.data_pipeline.state import checked

Stage = Callable[[Iterable[Any]], Iterable[Any]]
# of the draws that seed a user's stages; a reader's own views are small numbers
STAGE_VIEW = 1 << 32
REORDERING = ("shuffle", "detshuffle", "slice", "islice", "batched", "unbatched", "unlisted")
DROPPING = (
    "select",
    "rsample",
    "shuffle",
    "detshuffle",
    "slice",
    "islice",
    "unbatched",
    "unlisted",
)


def name_of(stage: Any) -> str:
    """`wds.map(f)` is "map"; another stage goes by the name of its function or class."""
    inner = getattr(stage, "f", getattr(stage, "func", stage))
    return getattr(inner, "__name__", type(inner).__name__).strip("_")


def through(stage: Any, data: Iterable[Any]) -> Iterable[Any]:
    out: Iterable[Any] = stage.run(data) if hasattr(stage, "run") else stage(data)
    return out


def to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Source(IterableDataset[dict[str, Any]]):
    """Raw samples {"__key__", "__url__", extension: bytes} of one rank in our order, without end.

    Worker k of n takes every n-th batch, and a loader with batch_size=None hands them out in turn,
    so that the number of workers changes nothing. A batch of this rank has `size` samples, and the
    pipeline ends in `wds.batched(source.size)`. A sample that cannot be used keeps its place:
    {"__key__", "__url__", "__bad__": reason}.

    shards: as in `open_index`. global_batch: samples of all ranks. seed, lanes, window: as in
    `Order`. say: takes a line for people. Raises UserError where there are no samples, or where
    the rank would have none of a batch.
    """

    def __init__(
        self,
        shards: str,
        global_batch: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        lanes: int | None = None,
        window: int | None = None,
        say: Callable[[str], None] = to_stderr,
    ) -> None:
        super().__init__()
        self.index = open_index(shards, say=say)
        if not self.index.n:
            raise UserError(
                f"{shards} holds no samples: no member of a shard is named as 0001.jpg is."
            )
        self.order = Order(self.index.chunk_samples, seed, lanes, window)
        self.global_batch, self.rank, self.world = global_batch, rank, world
        cap = -(-global_batch // world)
        self.size = max(0, min(cap, global_batch - rank * cap))
        if not self.size:
            raise UserError(
                f"rank {rank} of {world} has no sample in a batch of {global_batch}: "
                "take fewer ranks or a larger batch."
            )
        self.step, self.offset, self.pulled = 0, 0, 0
        self._chunks: ChunkReader | None = None
        if not rank:
            say(
                "stages behind this source must give one sample for one sample: what drops, adds "
                "or buffers samples moves the borders of the batches and ends the promise of the "
                "order (source.pipeline checks that)"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_chunks": None}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        chunks = self._chunks = self._chunks or ChunkReader(self.index)
        self.pulled = 0
        for step in count(self.step + worker, workers):
            share = self.order.share(step, self.global_batch, self.rank, self.world, self.offset)
            for g in self.order.ids(share[share >= 0]).tolist():
                self.pulled += 1
                try:
                    yield dict(chunks.sample(g))
                except BadSample as e:
                    at = chunks.place(g)
                    yield {
                        "__key__": at["key"],
                        "__url__": f"{self.index.root}/{at['shard']}",
                        "__bad__": e.reason,
                    }

    def pipeline(self, *stages: Any) -> Any:
        """`wds.DataPipeline(self, *stages)`, with a check that each sample comes through once and
        in its turn, up to the first stage whose name begins with "batch".

        Raises UserError for a stage known to do otherwise, and while iterating for one that
        is found to.
        """
        import webdataset as wds

        at = next((i for i, s in enumerate(stages) if name_of(s).startswith("batch")), len(stages))
        for stage in stages[:at]:
            if name_of(stage) in DROPPING:
                raise UserError(
                    f"wds.{name_of(stage)} drops, adds or reorders samples behind an ordered "
                    "source: leave it out; the order is shuffled already, and a sample to be "
                    "ignored can be marked."
                )
        return wds.DataPipeline(self, *stages[:at], OneForOne(self), *stages[at:])

    def watch(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches of a loader, counted where they leave it:
        `for batch in source.watch(loader)`. `state_dict` knows of these alone.
        """
        begin = self.step
        for done, batch in enumerate(batches, 1):
            self.step = begin + done
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """{"version", "position" in samples, "fingerprint"} after the last batch that `watch`
        handed out, whatever the loader read ahead: JSON, and the same on every rank.
        """
        return {
            "version": 1,
            "position": self.offset + self.step * self.global_batch,
            "fingerprint": self.order.fingerprint([self.index.digest]),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next loader over this source begins there, also under another batch size, world or
        number of workers.

        Raises UserError for the state of other data or order.
        """
        self.step, self.offset = divmod(
            checked(state, self.order.fingerprint([self.index.digest])), self.global_batch
        )


class OneForOne:
    """A stage that lets samples pass while exactly one left the source for each that arrives."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __call__(self, data: Iterable[Any]) -> Iterator[Any]:
        for arrived, sample in enumerate(data, 1):
            if self.source.pulled != arrived:
                raise UserError(
                    f"{self.source.pulled} samples left the source and {arrived} arrived, "
                    "so that a stage drops, adds or buffers samples: leave it out."
                )
            yield sample


@dataclass(frozen=True)
class Stages:
    """webdataset stages as a function of one raw sample: dict -> dict.

    Raises BadSample stage or stage_error.

    Each sample runs through stages of its own. What they draw from `random`, `numpy.random`
    and `torch` belongs to the sample, so that their pictures too are the same for every
    worker and world.
    """

    stages: tuple[Any, ...]

    def __post_init__(self) -> None:
        for stage in self.stages:
            if name_of(stage) in REORDERING:
                raise UserError(
                    f"wds.{name_of(stage)} has nothing to work on, since stages see one sample at "
                    "a time: leave it out; order and batches are the loader's."
                )

    def __call__(self, raw: dict[str, Any], draw: Draw) -> dict[str, Any]:
        def run() -> list[Any]:
            data: Iterable[Any] = iter([raw])
            for stage in self.stages:
                data = through(stage, data)
            return [x for x in data if x is not None]

        with seeded(draw):
            out = judged("stage_error", run)
        if not out:
            raise BadSample("stage")
        if len(out) > 1 or not isinstance(out[0], dict):
            raise BadSample(
                "stage_error", f"{len(out)} x {type(out[0]).__name__} came out, one dict is wanted"
            )
        return out[0]


@contextmanager
def seeded(draw: Draw) -> Iterator[None]:
    """The global generators begin where the sample says, and afterwards are as they were."""
    was = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    a, b, c = (int(u * 2**32) for u in draw(STAGE_VIEW, 3))
    random.seed(a)
    np.random.seed(b)
    torch.default_generator.manual_seed(c)
    try:
        yield
    finally:
        random.setstate(was[0])
        np.random.set_state(was[1])
        torch.default_generator.set_state(was[2])


class Staged:
    """A `Reader` behind webdataset stages: what an objective's
    `reader(spec, data, train)` may return.

    Stages see one raw sample at a time; what they draw belongs to the sample. Raises UserError for
    one that shuffles or batches.

    return Staged(ClipReader(...), [wds.rename(jpg="png"), wds.map(clean)])
    """

    def __init__(self, reader: Reader, stages: Iterable[Any]) -> None:
        self.reader, self.stages = reader, Stages(tuple(stages))

    def blank(self) -> Row:
        """The reader's."""
        return self.reader.blank()

    def __call__(self, members: Members, draw: Draw) -> Row:
        """The reader's arrays of what the stages make of a sample.

        Raises BadSample: what the reader raises, stage for a sample that a stage drops, stage_error
        for one at which a stage fails.
        """
        given = {k: members[k] for k in (CAPTION, LABEL) if k in members}
        return self.reader(Members({**self.stages(dict(members), draw), **given}), draw)
