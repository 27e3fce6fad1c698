"""The order of samples: a pure function of (chunk sizes, seed, lanes, window). NumPy only, no I/O.

Chunks are permuted an epoch and cut in L lanes; a lane is shuffled in windows of V samples whose
phases differ from lane to lane; positions deal over the lanes in turn. Golden vectors fix it to
the byte (docs/data.md).
"""

import hashlib
import struct
import threading
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

CHUNKS, WINDOW, AUGMENT, MIX = 1, 2, 3, 4  # purposes of draws
Int = NDArray[np.int64]


class _Generator(threading.local):
    """One a thread: between setting its state and drawing from it nobody else may come."""

    def __init__(self) -> None:
        self.philox = np.random.Philox(key=np.zeros(2, np.uint64))


_generator = _Generator()


def draws(seed: int, purpose: int, a: int, b: int, c: int, n: int) -> NDArray[np.uint64]:
    """The first n words of Philox4x64-10 with key (seed, purpose) and counter (i, a, b, c),
    i = 1, 2, 3 ...
    """
    philox = _generator.philox
    state: Any = philox.state  # setting the state of one generator costs a third of making another
    state["state"]["counter"][:] = (0, a, b, c)
    state["state"]["key"][:] = (seed, purpose)
    state["buffer_pos"] = 4
    state["has_uint32"] = 0
    philox.state = state
    return philox.random_raw(n)


def perm(words: NDArray[np.uint64]) -> Int:
    """Stable argsort, ascending."""
    return np.argsort(words, kind="stable")


def bit_reverse(lane: Int, lanes: int) -> Int:
    """The bit_length(L-1) low bits of a lane's number, reversed."""
    bits = (lanes - 1).bit_length()
    out = np.zeros_like(lane)
    for i in range(bits):
        out |= ((lane >> i) & 1) << (bits - 1 - i)
    return out


def defaults(n: int) -> tuple[int, int]:
    """(L, V) for N samples: L = 2^floor(log2(N/256)) within 1..1024;
    V = 256, of small sets so that 8 windows exist.
    """
    window = 256
    while window > 1 and n // window < 8:
        window //= 2
    return min(1024, 1 << max(0, (n // 256).bit_length() - 1)), window


def to_ranks(slots: Int, rank: int, world: int) -> Int:
    """The part of one rank of W of a batch's slots (B,): ceil(B/W) of them, -1 for padding."""
    cap = -(-len(slots) // world)
    mine = slots[rank * cap : (rank + 1) * cap]
    out = np.full(cap, -1, np.int64)
    out[: len(mine)] = mine
    return out


def fingerprint(seed: int, lanes: int, window: int, digests: list[bytes]) -> str:
    """32 hex digits that name data and order; see `Order.fingerprint`."""
    head = b"vtx-order-1\0" + struct.pack("<QIII", seed, lanes, window, len(digests))
    return hashlib.sha256(head + b"".join(digests)).hexdigest()[:32]


class Positions(Protocol):
    """What batches ask of an order (`Order`, `Mix`, `InOrder`): a sample at every position."""

    lanes: int
    window: int

    def ids(self, positions: Int) -> Int:
        """Sample numbers of global positions, (n,)."""

    def epochs(self, positions: Int) -> Int:
        """The epochs that global positions lie in, (n,)."""

    def share(self, step: int, batch: int, rank: int, world: int, offset: int = 0) -> Int:
        """The positions of one rank's slots, ceil(B/W) of them, -1 for padding."""


class Order:
    """Sample numbers by global position, over all epochs: position p lies in epoch p // N.

    chunk_samples (K,): samples a chunk, in tar order. Sample numbers are 0..N-1 through the chunks.
    seed: of all draws. lanes, window: L and V (samples), by `defaults` where None. source: tells
    the draws of one source from another's. Golden vectors fix it to the byte (docs/data.md). Raises
    ValueError where there is no sample.
    """

    def __init__(
        self,
        chunk_samples: NDArray[np.integer[Any]],
        seed: int,
        lanes: int | None = None,
        window: int | None = None,
        source: int = 0,
    ) -> None:
        self.sizes = np.asarray(chunk_samples, np.int64)
        self.n = int(self.sizes.sum())
        if self.n < 1:
            raise ValueError("an order needs at least one sample")
        auto = defaults(self.n)
        self.seed, self.source = seed, source
        self.lanes, self.window = lanes or auto[0], window or auto[1]
        self.first = np.concatenate([[0], np.cumsum(self.sizes)])[:-1]
        lane = np.arange(self.lanes, dtype=np.int64)
        self.reversed = bit_reverse(lane, self.lanes)
        self.phase = (self.reversed * self.window) >> (self.lanes - 1).bit_length()
        q, r = divmod(self.n, self.lanes)
        self.length = q + (lane < r)
        self.start = lane * q + np.minimum(lane, r)
        self._epoch = lru_cache(2)(self._make_epoch)
        self._window = lru_cache(4 * self.lanes + 64)(self._make_window)

    def __getstate__(self) -> dict[str, Any]:
        return {
            "chunk_samples": self.sizes,
            "seed": self.seed,
            "lanes": self.lanes,
            "window": self.window,
            "source": self.source,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        Order.__init__(self, **state)

    def row(self, epoch: int) -> tuple[Int, Int]:
        """(the chunks (K,) as an epoch lays them in a row, how many samples stand before each and
        at the end (K + 1,)).
        """
        return self._epoch(epoch)

    def _make_epoch(self, epoch: int) -> tuple[Int, Int]:
        pi = perm(draws(self.seed, CHUNKS + 256 * self.source, 0, 0, epoch, len(self.sizes)))
        return pi, np.concatenate([[0], np.cumsum(self.sizes[pi])])

    def _make_window(self, epoch: int, lane: int, w: int) -> tuple[int, Int]:
        """(elements before the window in its lane, sample numbers of the window in
        their shuffled order).
        """
        phase, length = int(self.phase[lane]), int(self.length[lane])
        a, b = max(0, w * self.window - phase), min(length, (w + 1) * self.window - phase)
        sigma = perm(draws(self.seed, WINDOW + 256 * self.source, w, lane, epoch, b - a))
        x = int(self.start[lane]) + a + sigma
        pi, sums = self._epoch(epoch)
        k = np.searchsorted(sums, x, side="right") - 1
        return a, self.first[pi[k]] + x - sums[k]

    def epochs(self, positions: Int) -> Int:
        """The epochs, from 0, that global positions (n,) lie in."""
        return np.asarray(positions, np.int64) // self.n

    def ids(self, positions: Int) -> Int:
        """Sample numbers (n,) of global positions (n,), which may stand in any order."""
        positions = np.asarray(positions, np.int64)
        epoch, p = positions // self.n, positions % self.n
        lane, j = p % self.lanes, p // self.lanes
        w = (j + self.phase[lane]) // self.window
        out = np.empty(len(positions), np.int64)
        get = self._window
        for i, (e, ln, ww, jj) in enumerate(
            zip(epoch.tolist(), lane.tolist(), w.tolist(), j.tolist(), strict=True)
        ):
            a, numbers = get(e, ln, ww)
            out[i] = numbers[jj - a]
        return out

    def slots(self, step: int, batch: int, offset: int = 0) -> Int:
        """The positions (B,) of global batch t = `step` in the order of its slots:
        by reversed lane, then position.

        batch: B. Batch t is the positions offset + [tB, (t+1)B); the offset is 0 unless the batch
        size changed on the way.
        """
        at = np.arange(offset + step * batch, offset + (step + 1) * batch, dtype=np.int64)
        return at[np.argsort(self.reversed[(at % self.n) % self.lanes], kind="stable")]

    def share(self, step: int, batch: int, rank: int, world: int, offset: int = 0) -> Int:
        """The positions of one rank's slots in a batch of B, ceil(B/W) of them, -1 for padding.

        step, batch, offset: as in `slots`. world: W.
        """
        return to_ranks(self.slots(step, batch, offset), rank, world)

    def fingerprint(self, digests: list[bytes]) -> str:
        """32 hex digits that name data and order; world, batch size,
        workers and paths are not in it.

        digests: `Index.digest` of each source.
        """
        return fingerprint(self.seed, self.lanes, self.window, digests)
