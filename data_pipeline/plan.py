"""When the chunks of an epoch are needed, by the order alone: what a cache fetches and lets go.

A lane takes its chunks one after the other and shuffles in windows: a chunk is needed from the
first position of the window that its first sample lies in to the end of that of its last.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vtx_scale.data_pipeline.index import Index
from vtx_scale.data_pipeline.mix import Mix
from vtx_scale.data_pipeline.order import Int, Order, to_ranks

LOOKS = 64  # batches of an epoch that say which lanes are a node's


class Spans(NamedTuple):
    """When chunks of a node's lanes are in use in an epoch: positions from its beginning, the last
    one included. int32 where they fit, since each loader process has them.
    """

    chunk: NDArray[np.integer[Any]]  # (m,), ascending, each once
    first: NDArray[np.integer[Any]]  # (m,)
    last: NDArray[np.integer[Any]]  # (m,)


class Plan:
    """What the ranks of one node need of an index and when.

    order: of that index, or of a mix, of which it is `source`. batch: B, slots of all ranks;
    offset: where batch 0 begins. ranks of `world`: those whose readers share a cache. end: the
    position behind the last sample that is read, None for ever. Positions are those of the index's
    own order (see `own`).
    """

    def __init__(
        self,
        index: Index,
        order: Order | Mix,
        batch: int,
        ranks: Iterable[int],
        world: int,
        end: int | None = None,
        offset: int = 0,
        source: int = 0,
    ) -> None:
        self.mix = order if isinstance(order, Mix) else None
        self.whole, self.source = order, source
        self.order = order.orders[source] if isinstance(order, Mix) else order
        self.index, self.batch = index, batch
        self.ranks, self.world, self.end = sorted(set(ranks)), world, end
        self.offset = offset
        counts = index.chunk_samples_all
        if index.keep is not None:
            counts = np.diff(np.searchsorted(index.keep, index.sample_first))
        # of the order's chunks in the index
        self.numbers = np.flatnonzero(counts)
        self._spans = lru_cache(2)(self._make_spans)

    def own(self, position: int) -> int:
        """Where the index's own order is at a global position."""
        return position if self.mix is None else int(self.mix.counts(position)[self.source])

    def _shares(self, step: int, offset: int) -> Int:
        """The own positions of the slots of a batch that are the node's, rank after rank."""
        slots = self.whole.slots(step, self.batch, offset)
        shares = np.concatenate([to_ranks(slots, rank, self.world) for rank in self.ranks])
        shares = shares[shares >= 0]
        if self.mix is None:
            return shares
        source, own = self.mix.located(shares)
        mine: Int = own[source == self.source]
        return mine

    def needs(self, step: int, offset: int | None = None) -> Int:
        """The chunks (n,) that the batch of a step needs on this node, in the order of use; not
        those of one bad sample alone, of which nothing is kept.

        offset: where batch 0 would begin, if the step's batch begins elsewhere than the plan's.
        """
        at = self.offset if offset is None else offset
        positions = self._shares(step, at)
        if self.end is not None:
            positions = positions[positions < self.end]
        samples = self.order.ids(positions)
        if self.index.keep is not None:
            samples = self.index.keep[samples]
        chunks = np.searchsorted(self.index.sample_first, samples, side="right") - 1
        _, first = np.unique(chunks, return_index=True)
        found = chunks[np.sort(first)].tolist()
        return np.array([k for k in found if not self.index.only_bad(k)], np.int64)

    def next_use(self, chunks: Int, position: int) -> NDArray[np.float64]:
        """The first position, from `position` on, at which each of the chunks (n,) may be needed:
        infinite where none is known.
        """
        n = self.order.n
        epoch, inside = divmod(position, n)
        found = np.full(len(chunks), np.inf)
        for at, least in ((epoch, inside), (epoch + 1, 0)):
            for spans in self._spans(at):
                if not len(spans.chunk):
                    continue
                i = np.minimum(np.searchsorted(spans.chunk, chunks), len(spans.chunk) - 1)
                known = (spans.chunk[i] == chunks) & (spans.last[i] >= least)
                used = at * n + np.maximum(spans.first[i].astype(np.int64), least)
                found = np.where(known, np.minimum(found, used), found)
        if self.end is not None:
            found = np.where(found < self.end, found, np.inf)
        return np.asarray(found, np.float64)

    def in_use(self, begin: int, end: int) -> Int:
        """The chunks (n,) in use at any position from `begin` to `end`, which lie in one epoch or
        two.
        """
        n, found = self.order.n, []
        for epoch in {begin // n, begin // n + 1} if end // n > begin // n else {begin // n}:
            for spans in self._spans(epoch):
                used = epoch * n + spans.first.astype(np.int64) <= end
                used &= epoch * n + spans.last.astype(np.int64) >= begin
                found.append(spans.chunk[used])
        return np.unique(np.concatenate(found)).astype(np.int64)

    def working_set(self, costs: NDArray[Any], ahead: int, position: int = 0) -> int:
        """The most that chunks in use cost at any one time of an epoch.

        costs: (K,) of each chunk. ahead: positions for which they are there early.
        """
        n = self.order.n
        chunk, first, last = map(np.concatenate, zip(*self._spans(position // n), strict=True))
        at = np.concatenate([first.astype(np.int64) - ahead, last.astype(np.int64) + 1])
        change = costs[chunk].astype(np.int64)
        change = np.concatenate([change, -change])
        # what ends at a position ends before what begins there
        order = np.lexsort((change, at))
        return int(np.cumsum(change[order]).max(initial=0))

    def _lanes(self, epoch: int) -> NDArray[np.bool_]:
        """(L,) whether a lane's samples are read on this node, as some batches of the epoch say."""
        order, n = self.order, self.order.n
        if len(self.ranks) == self.world:
            return np.ones(order.lanes, bool)
        found = np.zeros(order.lanes, bool)
        # in a mix, where a rank keeps its lanes too, the first batches say it
        begin = 0 if self.mix else (epoch * n - self.offset) // self.batch + 1
        steps = np.unique(np.linspace(0, max(0, n // self.batch - 1), LOOKS).astype(np.int64))
        # neighbours too, since a batch may be a part of the lanes
        around = np.arange(min(LOOKS, max(1, n // self.batch)))
        for step in np.unique(np.concatenate([steps, around])).tolist():
            share = self._shares(max(0, begin) + step, self.offset)
            found[(share % n) % order.lanes] = True
        return found

    def _make_spans(self, epoch: int) -> tuple[Spans, Spans]:
        """Of chunks that begin in a lane, and of those that go on in the next: a chunk may be the
        end of one lane and the beginning of another.
        """
        order = self.order
        pi, sums = order.row(epoch)
        lanes = np.flatnonzero(self._lanes(epoch) & (order.length > 0))
        stop = order.start[lanes] + order.length[lanes] - 1
        # the places in the row of each lane's chunks
        low = np.searchsorted(sums, order.start[lanes], side="right") - 1
        counts = np.searchsorted(sums, stop, side="right") - low
        row = np.arange(counts.sum()) + np.repeat(low - np.cumsum(counts) + counts, counts)
        lane = np.repeat(lanes, counts)
        at, phase = order.start[lane], order.phase[lane]
        x, y = np.maximum(sums[row], at), np.minimum(sums[row + 1] - 1, np.repeat(stop, counts))
        first = np.maximum((x - at + phase) // order.window * order.window - phase, 0)
        last = ((y - at + phase) // order.window + 1) * order.window - phase
        last = np.minimum(last, order.length[lane]) - 1
        first, last = first * order.lanes + lane, last * order.lanes + lane
        begins = sums[row] >= at

        def spans(part: NDArray[np.bool_]) -> Spans:
            places, where = np.unique(row[part], return_index=True)  # several lanes of one chunk
            kind = np.int32 if order.n < 2**31 and len(self.index.chunk_bytes) < 2**31 else np.int64
            chunk, low, high = self.numbers[pi[places]], first[part], last[part]
            if len(where):
                low, high = np.minimum.reduceat(low, where), np.maximum.reduceat(high, where)
            by = np.argsort(chunk)
            return Spans(chunk[by].astype(kind), low[by].astype(kind), high[by].astype(kind))

        return spans(begins), spans(~begins)
