"""Which source stands at which position of a mix: a pure function of seed, weights and position.

Positions come in blocks of 65,536, in which a source has exactly its share. Each of its places in a
block is drawn within an even stretch of its own, so that it is never far ahead or behind. A source
is read in its own order, epoch by epoch, whatever the others do.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vtx_scale.data_pipeline.order import MIX, Int, Order, defaults, draws, fingerprint, to_ranks
from vtx_scale.data_pipeline.state import Segment
from vtx_scale.data_pipeline.weights import TOTAL

BLOCKS_KEPT = 4


def block(
    seed: int, segment: int, number: int, weights: Sequence[int]
) -> NDArray[np.unsignedinteger[Any]]:
    """The source of each position (65,536,) of a block, as uint8 of up to 256 sources, else uint16.

    segment, number: which block it is, both from 0. weights: positions of each source in it.
    """
    words = draws(seed, MIX, number, segment, 0, TOTAL) >> np.uint64(32)
    parts, at = [], 0
    for count in weights:
        k = np.arange(count, dtype=np.uint64)
        spread = ((k << np.uint64(32)) + words[at : at + count]) << np.uint64(15)
        parts.append(spread // np.uint64(count))
        at += count
    numbers = np.arange(len(weights), dtype=np.min_scalar_type(len(weights) - 1))
    out: NDArray[np.unsignedinteger[Any]] = np.repeat(numbers, weights)
    return out[np.argsort(np.concatenate(parts), kind="stable")]


class Mix:
    """Several sources by global position: an order as `Order` is one, and that order where there is
    one source alone.

    chunk_samples: of each source, as an `Order` takes it. Sample numbers go through the sources,
    one behind the other: source i begins at `firsts[i]`. segments: ascending, the first begins at
    position 0. lanes, window: L and V of every source; by `defaults` of all samples where None.
    Golden vectors fix it to the byte (docs/data.md). Raises ValueError for segments that are none.
    """

    def __init__(
        self,
        chunk_samples: Sequence[NDArray[np.integer[Any]]],
        seed: int,
        segments: Sequence[Segment],
        lanes: int | None = None,
        window: int | None = None,
    ) -> None:
        auto = defaults(sum(int(np.sum(sizes, dtype=np.int64)) for sizes in chunk_samples))
        self.lanes, self.window, self.seed = lanes or auto[0], window or auto[1], seed
        self.orders = [
            Order(sizes, seed, self.lanes, self.window, source=i)
            for i, sizes in enumerate(chunk_samples)
        ]
        counts = [order.n for order in self.orders]
        self.n = sum(counts)
        self.firsts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])[:-1]
        self._block = lru_cache(BLOCKS_KEPT)(self._make_block)
        self.set_segments(segments)

    def __getstate__(self) -> dict[str, Any]:
        return {
            "chunk_samples": [order.sizes for order in self.orders],
            "seed": self.seed,
            "segments": self.segments,
            "lanes": self.lanes,
            "window": self.window,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        Mix.__init__(self, **state)

    def set_segments(self, segments: Sequence[Segment]) -> None:
        """Other weights from some positions on; what lies before the first change stays.

        Raises ValueError where they do not ascend from 0, or do not share out a block among the
        sources.
        """
        starts = [start for start, _ in segments]
        if not starts or starts[0] or any(a >= b for a, b in zip(starts, starts[1:], strict=False)):
            raise ValueError("segments ascend from position 0")
        for _, weights in segments:
            if len(weights) != len(self.orders) or sum(weights) != TOTAL or min(weights) < 1:
                raise ValueError(f"weights of a segment share out {TOTAL} among the sources")
        self.segments = tuple((start, tuple(weights)) for start, weights in segments)
        self._starts = np.array(starts, np.int64)
        self._block.cache_clear()
        self._before = np.zeros((len(segments), len(self.orders)), np.int64)
        for z in range(1, len(segments)):
            self._before[z] = self._before[z - 1] + self._counts(z - 1, starts[z] - starts[z - 1])

    def _make_block(self, segment: int, number: int) -> tuple[NDArray[Any], Int]:
        """(source, how often it came before in the block) of each position of a block."""
        weights = self.segments[segment][1]
        source = block(self.seed, segment, number, weights)
        before = np.empty(TOTAL, np.int64)
        # a stable sort lays each source's positions side by side, in their order
        before[np.argsort(source, kind="stable")] = np.concatenate([np.arange(w) for w in weights])
        return source, before

    def _counts(self, segment: int, length: int) -> Int:
        """(S,) positions of each source in the first `length` of a segment."""
        blocks, rest = divmod(length, TOTAL)
        out = blocks * np.array(self.segments[segment][1], np.int64)
        if rest:
            out += np.bincount(self._block(segment, blocks)[0][:rest], minlength=len(out))
        return out

    def counts(self, position: int) -> Int:
        """(S,) positions of each source before a global one."""
        z = int(np.searchsorted(self._starts, position, side="right")) - 1
        out: Int = self._before[z] + self._counts(z, position - int(self._starts[z]))
        return out

    def located(self, positions: Int) -> tuple[Int, Int]:
        """(source, position in that source's own order) of global positions (n,)."""
        positions = np.asarray(positions, np.int64)
        z = np.searchsorted(self._starts, positions, side="right") - 1
        number, at = np.divmod(positions - self._starts[z], TOTAL)
        source, own = np.zeros_like(positions), np.zeros_like(positions)
        for segment, b in {*zip(z.tolist(), number.tolist(), strict=True)}:
            here = (z == segment) & (number == b)
            sources, before = self._block(segment, b)
            i = sources[at[here]].astype(np.int64)
            weights = np.array(self.segments[segment][1], np.int64)
            source[here] = i
            own[here] = self._before[segment][i] + b * weights[i] + before[at[here]]
        return source, own

    def ids(self, positions: Int) -> Int:
        """Sample numbers (n,), through all sources, of global positions (n,) in any order."""
        source, own = self.located(positions)
        out = np.empty(len(own), np.int64)
        for i in np.unique(source).tolist():
            out[source == i] = self.firsts[i] + self.orders[i].ids(own[source == i])
        return out

    def epochs(self, positions: Int) -> Int:
        """The epochs of their own sources, from 0, that global positions (n,) lie in."""
        source, own = self.located(positions)
        return own // np.array([order.n for order in self.orders], np.int64)[source]

    def slots(self, step: int, batch: int, offset: int = 0) -> Int:
        """The positions (B,) of a global batch in the order of its slots: by reversed lane, then
        source, then position. As `Order.slots`.
        """
        at = np.arange(offset + step * batch, offset + (step + 1) * batch, dtype=np.int64)
        source, own = self.located(at)
        counts = np.array([order.n for order in self.orders], np.int64)
        lane = (own % counts[source]) % self.lanes
        return at[np.lexsort((at, source, self.orders[0].reversed[lane]))]

    def share(self, step: int, batch: int, rank: int, world: int, offset: int = 0) -> Int:
        """The positions of one rank's slots in a batch of B, ceil(B/W) of them, -1 for padding.
        As `Order.share`.
        """
        return to_ranks(self.slots(step, batch, offset), rank, world)

    def fingerprint(self, digests: list[bytes]) -> str:
        """32 hex digits that name data and order; weights are not in it.

        digests: `Index.digest` of each source.
        """
        return fingerprint(self.seed, self.lanes, self.window, digests)
