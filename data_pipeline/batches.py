"""Batches: step -> this rank's samples, read and decoded.

A batch is addressed by its step alone, so that any worker can make any batch, and a start anywhere
costs the same.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import get_worker_info

from vtx_scale.data_pipeline.cached import source_for
from vtx_scale.data_pipeline.chunks import Source
from vtx_scale.data_pipeline.errors import BLANK, DETAIL, BadSample, judged, notes
from vtx_scale.data_pipeline.index import Index
from vtx_scale.data_pipeline.mix import Mix
from vtx_scale.data_pipeline.order import AUGMENT, Int, Order, Positions, draws
from vtx_scale.data_pipeline.plan import Plan
from vtx_scale.data_pipeline.prefetch import Caching, NodeChunks
from vtx_scale.data_pipeline.read import CHUNKS_KEPT, Draw, Members, Row
from vtx_scale.data_pipeline.scan import CHUNK
from vtx_scale.data_pipeline.sources import Samples
from vtx_scale.data_pipeline.state import Segment, state_of
from vtx_scale.data_pipeline.users import order_key


class Reader(Protocol):
    """Sample bytes and keyed randomness in, arrays out; picklable.

    It runs in the loader's workers, on one sample at a time.
    """

    def __call__(self, members: Members, draw: Draw) -> Row:
        """The arrays of one sample, by name, with the shapes and types of `blank`.

        members: extension -> bytes, with `__key__` and `__url__`; one that is missing raises
        BadSample by itself. draw(view, n): n float64 numbers in [0, 1) that belong to the seed, the
        epoch, the sample and the view. Raises BadSample for a sample that cannot be used; whatever
        else it raises for a sample, but UserError and MemoryError, masks that one too.
        """

    def blank(self) -> Row:
        """The same names with arrays of the same shapes and types, whose values do not count."""


class InOrder:
    """Every sample once in tar order: the order of an evaluation."""

    lanes = window = 1

    def __init__(self, n: int) -> None:
        self.n = n

    def ids(self, positions: Int) -> Int:
        return positions

    def epochs(self, positions: Int) -> Int:
        return np.zeros_like(positions)

    def share(self, step: int, batch: int, rank: int, world: int, offset: int = 0) -> Int:
        cap = -(-batch // world)
        inside = np.arange(rank * cap, min(batch, (rank + 1) * cap))
        at = offset + step * batch + inside
        out = np.full(cap, -1, np.int64)
        out[: len(at)] = np.where(at < self.n, at, -1)
        return out


def uniforms(seed: int, source: int, sample: int, epoch: int) -> Draw:
    """draw(view, n): n float64 numbers in [0, 1) that belong to (seed, sample, epoch, view)."""

    def draw(view: int, n: int) -> NDArray[np.float64]:
        words = np.asarray(
            draws(seed, AUGMENT + 256 * source, view, sample, epoch, n), dtype=np.uint64
        )
        return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53

    return draw


@dataclass
class Batches(TorchDataset[dict[str, Any]]):
    """`batches[step]` is the share of one rank: the fields of a `Batch` as a dict, which has the
    shapes.

    index, order: what there is, and where it stands. global_batch: slots of all ranks; a rank has
    ceil(global_batch / world) of them. seed: of the reader's draws. more: the indexes of the other
    sources of a mix, whose samples are numbered behind those of `index`. names: of all sources,
    where they have any. Picklable; descriptors are opened in the process that reads.
    """

    index: Index
    order: Positions
    reader: Reader
    global_batch: int
    rank: int
    world: int
    seed: int = 0
    more: tuple[Index, ...] = ()
    names: tuple[str, ...] = ()
    offset: int = 0  # of the first batch; not 0 where the batch size changed on the way
    jumps: dict[int, int] = field(default_factory=dict)  # step -> where its batch begins instead
    caching: Caching | None = None  # where this node keeps chunks, if it does
    chunks: Samples | None = field(default=None, repr=False)
    nodes: list[NodeChunks] = field(default_factory=list, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        # descriptors and tables belong to one process
        return {**self.__dict__, "chunks": None, "nodes": []}

    @property
    def indexes(self) -> tuple[Index, ...]:
        """Of all sources, in their order."""
        return (self.index, *self.more)

    @property
    def fingerprint(self) -> str:
        """32 hex digits that name data and order; see `Order.fingerprint`.

        Raises AssertionError of an evaluation's order, which has none.
        """
        assert isinstance(self.order, Order | Mix), "an evaluation has no order to name"
        return self.order.fingerprint([index.digest for index in self.indexes])

    @property
    def mix(self) -> Mix | None:
        """The order, where it is that of a mix."""
        return self.order if isinstance(self.order, Mix) else None

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Of a mix: (first position, weights) of each; none of one source alone."""
        return self.mix.segments if self.mix is not None and self.more else ()

    def state(self, position: int) -> dict[str, Any]:
        """The state of the data at a position, JSON: its fingerprint, of a mix the segments too."""
        return state_of(position, self.fingerprint, self.segments)

    def go_on(self, step: int, position: int, jumps: dict[int, int] | None = None) -> None:
        """Let the batch of `step` begin at this position of the order: the batches before may have
        had another size.

        jumps: steps, from 0, whose batches begin elsewhere than behind the one before; of `step`
        itself it counts in place of `position`.
        """
        self.offset = position - step * self.global_batch
        self.jumps = {at: to for at, to in (jumps or {}).items() if at >= step}

    def start(self, step: int) -> int:
        """The position of the order at which the batch of a step begins."""
        last = max((at for at in self.jumps if at <= step), default=None)
        if last is None:
            return self.offset + step * self.global_batch
        return self.jumps[last] + (step - last) * self.global_batch

    def chunk_reader(self) -> Samples:
        """This process's reader of samples, made when first asked for; it keeps as many tables of a
        source as the order's lanes use at a time.
        """
        if self.chunks is None:
            in_use = self.order.lanes * (self.order.window // CHUNK + 3)
            found = [self._source(i) for i in range(len(self.indexes))]
            self.nodes = [node for _, node in found if node is not None]
            sources = [source for source, _ in found]
            kept = max(CHUNKS_KEPT, in_use)
            self.chunks = Samples(self.indexes, self.names, kept, sources)
        return self.chunks

    def _source(self, i: int) -> tuple[Source, NodeChunks | None]:
        """Where this process reads the chunks of a source, and its part in the node's cache."""
        ordered = isinstance(self.order, Order | Mix)
        plan = partial(self.plan, source=i) if ordered else None
        index, key = self.indexes[i], 0
        if ordered and self.caching is not None:
            batch, world = self.global_batch, self.world
            key = order_key(self.fingerprint, batch, world, self.offset, self.jumps)
        return source_for(index, self.caching, i, plan, self.start, self.rank, key)

    def chunks_at(self, step: int) -> Samples:
        """The same, where the batch of a step is read next."""
        chunks = self.chunk_reader()
        for node in self.nodes:
            node.at(step)
        return chunks

    def plan(self, ranks: list[int], source: int = 0) -> Plan:
        """What some ranks need of a source, and when.

        Raises AssertionError of an evaluation's order, which has no epochs.
        """
        assert isinstance(self.order, Order | Mix), "an evaluation has no plan"
        index, batch = self.indexes[source], self.global_batch
        return Plan(index, self.order, batch, ranks, self.world, offset=self.offset, source=source)

    def close(self) -> None:
        """Let go of what this process holds to read; the next batch opens it anew."""
        if self.chunks is not None:
            self.chunks.close()
        self.chunks, self.nodes = None, []

    def __getitem__(self, step: int) -> dict[str, Any]:
        return self.make(step)

    def make(
        self, step: int, skip: Collection[int] = (), before: Callable[[int], None] | None = None
    ) -> dict[str, Any]:
        """The batch of a step, counted from 0: the fields of a `Batch`, as tensors.

        skip: slots masked unread. before: is called with each slot before it is read. A sample that
        cannot be used is masked and stands in `bad`. Raises UserError where a shard is gone or
        changed, or too much cannot be read.
        """
        chunks = self.chunks_at(step)
        offset = self.start(step) - step * self.global_batch
        positions = self.order.share(step, self.global_batch, self.rank, self.world, offset)
        n = len(positions)
        inside = positions >= 0
        ids = np.full(n, -1, np.int64)
        epochs = np.zeros(n, np.int64)
        ids[inside] = self.order.ids(positions[inside])
        epochs[inside] = self.order.epochs(positions[inside])
        slot = np.where(inside, self.rank * n + np.arange(n), -1)
        valid = np.zeros(n, bool)
        held = {k: rows_like(v, n) for k, v in self.reader.blank().items()}
        data = {k: v.numpy() for k, v in held.items()}
        bad = []
        notes.clear()
        for i in np.flatnonzero(inside).tolist():
            g, epoch = int(ids[i]), int(epochs[i])
            if before is not None:
                before(int(slot[i]))
            try:
                if slot[i] in skip:
                    raise BadSample("worker_died")
                source, own = chunks.located(g)
                draw = uniforms(self.seed, source, own, epoch)
                put(self.reader, chunks.sample(g), draw, data, i)
            except BadSample as e:
                bad.append(
                    {
                        "kind": "sample",
                        "reason": e.reason,
                        **chunks.place(g),
                        "epoch": epoch,
                        "position": int(positions[i]),
                        "slot": int(slot[i]),
                        **({"detail": e.detail[:DETAIL]} if e.detail else {}),
                        **members_of(e, chunks, g),
                    }
                )
                continue
            valid[i] = True
        return tensors(
            {
                "data": held,
                "valid": valid,
                "ids": ids,
                "epoch": epochs,
                "slot": slot,
                "bad": tuple(bad),
                "notes": dict(notes),
            }
        )


def rows_like(value: NDArray[Any], n: int) -> torch.Tensor:
    """(n, ...) zeros; in a loader process in the memory that it shares with its trainer, where they
    are else copied to.
    """
    zeros = torch.from_numpy(np.zeros((n, *value.shape), value.dtype))  # no page is touched yet
    if get_worker_info() is None or not zeros.nbytes:
        return zeros
    shared = torch.UntypedStorage._new_shared(zeros.nbytes)  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=zeros.dtype).set_(shared).view(zeros.shape)


def members_of(e: BadSample, chunks: Samples, g: int) -> dict[str, list[str]]:
    """Where a member is missing: those that the sample has."""
    if e.reason != "member_missing":
        return {}
    names = sorted(name for name in chunks.sample(g) if not name.startswith("__"))
    return {"members": [name[:40] for name in names[:20]]}


def put(reader: Reader, members: Members, draw: Draw, rows: Row, i: int) -> None:
    """Row i of the arrays is what the reader makes of a sample; zeros where it cannot be used.

    rows: name -> (n, ...) arrays as the reader's `blank` has them. Raises BadSample, UserError and
    MemoryError alone: reader_error for what else the reader raises, and for arrays that are not
    those of `blank`.
    """

    def read() -> None:
        for name, value in reader(members, draw).items():
            place(rows, name, i, np.asarray(value))

    try:
        judged("reader_error", read)
    except BadSample:
        for row in rows.values():
            row[i] = 0
        raise


def place(rows: Row, name: str, i: int, value: NDArray[Any]) -> None:
    """rows[name][i] = value. Raises BadSample where it does not go in there."""
    if name not in rows:
        raise BadSample("reader_error", f"the reader gives {name}, {BLANK} has none")
    try:
        fill(rows[name], i, value)
    except ValueError as e:
        if value.shape == rows[name].shape[1:]:
            raise
        asked = rows[name].shape[1:]
        text = f"the reader gives {name} {value.shape}, {BLANK} says {asked}"
        raise BadSample("reader_error", text) from e


def fill(rows: NDArray[Any], i: int, value: NDArray[Any]) -> None:
    """rows[i] = value; a picture that lies in planes, as a resize leaves it, goes plane by plane:
    four times as fast.
    """
    if (
        value.ndim > 2
        and value.shape == rows.shape[1:]
        and abs(value.strides[-1]) > abs(value.strides[-2])
    ):
        for channel in range(value.shape[-1]):
            rows[i, ..., channel] = value[..., channel]
    else:
        rows[i] = value


def tensors(batch: dict[str, Any]) -> dict[str, Any]:
    """Arrays as tensors, also those one level down."""
    return {
        k: torch.from_numpy(v) if isinstance(v, np.ndarray) else tensors(v) if k == "data" else v
        for k, v in batch.items()
    }


def arrays(batch: dict[str, Any]) -> dict[str, Any]:
    """The way back."""
    return {
        k: v.numpy() if isinstance(v, torch.Tensor) else arrays(v) if k == "data" else v
        for k, v in batch.items()
    }
