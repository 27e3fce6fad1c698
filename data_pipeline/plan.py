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
from vtx_scale.data_pipeline.order import Int, Order

LOOKS = 64  # batches of an epoch that say which lanes are a node's


class Spans(NamedTuple):
    """When each chunk of the index is in use in an epoch: positions from its beginning, the last
    one included; -1 where a node does not need the chunk. Twice, since a chunk may be the end of
    one lane and the beginning of the next.
    """

    first: Int  # (2, K)
    last: Int  # (2, K)


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
        self._spans = lru_cache(3)(self._make_spans)

    def own(self, position: int) -> int:
        """Where the index's own order is at a global position."""
        return position if self.mix is None else int(self.mix.counts(position)[self.source])

    def _share(self, step: int, rank: int, offset: int) -> Int:
        """The own positions of a rank's slots of a batch."""
        share = self.whole.share(step, self.batch, rank, self.world, offset)
        share = share[share >= 0]
        if self.mix is None:
            return share
        source, own = self.mix.located(share)
        mine: Int = own[source == self.source]
        return mine

    def needs(self, step: int, offset: int | None = None) -> Int:
        """The chunks (n,) that the batch of a step needs on this node, in the order of use; not
        those of one bad sample alone, of which nothing is kept.

        offset: where batch 0 would begin, if the step's batch begins elsewhere than the plan's.
        """
        at = self.offset if offset is None else offset
        positions = np.concatenate([self._share(step, rank, at) for rank in self.ranks])
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
            spans = self._spans(at)
            for first, last in zip(spans.first[:, chunks], spans.last[:, chunks], strict=True):
                used = at * n + np.maximum(first, least)
                found = np.where(last >= least, np.minimum(found, used), found)
        if self.end is not None:
            found = np.where(found < self.end, found, np.inf)
        return np.asarray(found, np.float64)

    def working_set(self, costs: NDArray[Any], ahead: int, position: int = 0) -> int:
        """The most that chunks in use cost at any one time of an epoch.

        costs: (K,) of each chunk. ahead: positions for which they are there early.
        """
        n = self.order.n
        here = self._spans(position // n)
        part, used = np.nonzero(here.last >= 0)
        at = np.concatenate([here.first[part, used] - ahead, here.last[part, used] + 1])
        change = costs[used].astype(np.int64)
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
            for rank in self.ranks:
                share = self._share(max(0, begin) + step, rank, self.offset)
                found[(share % n) % order.lanes] = True
        return found

    def _make_spans(self, epoch: int) -> Spans:
        order, count = self.order, len(self.index.chunk_bytes)
        pi, sums = order.row(epoch)
        begin, end = sums[:-1], sums[1:] - 1  # the row's first and last sample of each chunk
        a = np.searchsorted(order.start, begin, side="right") - 1
        b = np.searchsorted(order.start, end, side="right") - 1
        lanes = self._lanes(epoch)
        spans = Spans(np.full((2, count), -1, np.int64), np.full((2, count), -1, np.int64))
        numbers, far = self.numbers[pi], np.iinfo(np.int64).max

        def see(part: int, row: Int, lane: Int, x: Int, y: Int) -> None:
            """Samples x..y of the row, those of one chunk in one lane: widen its span."""
            mine = lanes[lane]
            row, lane, x, y = row[mine], lane[mine], x[mine], y[mine]
            phase, at = order.phase[lane], order.start[lane]
            low = np.maximum((x - at + phase) // order.window * order.window - phase, 0)
            high = ((y - at + phase) // order.window + 1) * order.window - phase
            high = np.minimum(high, order.length[lane]) - 1
            k = numbers[row]
            known = np.where(spans.last[part, k] < 0, far, spans.first[part, k])
            spans.first[part, k] = np.minimum(known, low * order.lanes + lane)
            spans.last[part, k] = np.maximum(spans.last[part, k], high * order.lanes + lane)

        stop = order.start + order.length - 1
        every, over = np.arange(len(pi)), np.flatnonzero(b > a)
        see(0, every, a, begin, np.minimum(end, stop[a]))
        see(1, over, b[over], order.start[b[over]], end[over])
        for i in np.flatnonzero(b > a + 1).tolist():  # a chunk that spans whole lanes
            for lane in range(int(a[i]) + 1, int(b[i])):
                one = np.array([lane])
                see(1, np.array([i]), one, order.start[one], stop[one])
        return spans
