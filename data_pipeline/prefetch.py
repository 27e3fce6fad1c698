"""A node's chunks through its cache: read by all of its loaders, fetched ahead by one of them."""

import contextlib
import math
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vtx_scale.data_pipeline.book import BLOCK
from vtx_scale.data_pipeline.cache import SPARE, NodeCache, never
from vtx_scale.data_pipeline.order import Int
from vtx_scale.data_pipeline.plan import Plan
from vtx_scale.data_pipeline.storage import File
from vtx_scale.data_pipeline.users import say_in_use

FETCHERS = 4  # chunks that are under way at a time
AHEAD, MOST_AHEAD = 4, 1024  # batches beyond the foremost reader's
SAID = 1.0  # seconds after which other runs hear anew what is in use
PAUSE = 0.02  # seconds between looks at where the readers are
NONE = 1 << 62  # no step

Work = queue.Queue[tuple[int, int]]  # (chunk, the step that needs it)


@dataclass(frozen=True)
class Caching:
    """Where a node keeps chunks. limit: bytes of its disk. sparse: the limit is below what is in
    use at a time, so nothing is kept and samples are read one by one. shares: of each source of a
    mix, in bytes; none of one source alone.
    """

    folder: Path
    limit: int
    sparse: bool = False
    shares: tuple[int, ...] = ()


class NodeChunks:
    """Chunks for the readers of one process: from the node's cache, which it helps to fill.

    lengths: (K,) bytes of each chunk. fetch: the bytes of a chunk, its CRC checked; called from
    several threads. plan: of the ranks that it is given; without one nothing is fetched ahead, and
    nothing of this data set makes room. start: the position at which a step's batch begins. rank:
    whose batches this process makes.
    """

    def __init__(
        self,
        cache: NodeCache,
        lengths: NDArray[Any],
        fetch: Callable[[int], bytes],
        plan: Callable[[list[int]], Plan] | None,
        start: Callable[[int], int],
        rank: int,
    ) -> None:
        self.cache, self.lengths, self.fetch = cache, lengths, fetch
        self.start, self.rank = start, rank
        self._make_plan = plan
        self._plan: Plan | None = None
        self._step = -1
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()
        self._lock = threading.Lock()  # of the plan
        self._seconds: deque[float] = deque(maxlen=200)  # that fetches took
        self._behind = NONE  # the first step of which the prefetcher could not have a chunk

    def at(self, step: int) -> None:
        """The batch of this step is read next: let the node know, and its prefetcher begin."""
        self._step = step
        self.cache.enter(self.rank, step)
        self.cache.users.at(step)
        if self._thread is None and self._make_plan is not None:
            self._thread = threading.Thread(target=self._prefetch, daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Fetch no more, and let another process do so."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(5)
        self.cache.leave()

    def open(self, k: int) -> File | None:
        """The file of a chunk, fetched where it is not there; None where there is no room for it.

        Raises what `fetch` raises.
        """
        length = int(self.lengths[k])
        if (file := self.cache.open(k, length)) is not None:
            return file
        return self._get(k, max(self._step, 0))

    def _get(self, k: int, step: int) -> File | None:
        """step: whose batch needs the chunk."""

        def fetch() -> bytes:
            begin = time.monotonic()
            body = self.fetch(k)
            self._seconds.append(time.monotonic() - begin)
            return body

        return self.cache.get(k, int(self.lengths[k]), fetch, self._uses, self._before(step))

    def _readers(self) -> list[tuple[int, int]]:
        """(rank, step) of this run's readers on this node, this process's own at least."""
        return self.cache.users.readers() or [(self.rank, max(self._step, 0))]

    def _uses(self, chunks: Int) -> NDArray[np.float64]:
        """When each chunk is needed next on this node, as far as its slowest reader is."""
        if self._make_plan is None:
            return never(chunks)
        readers = self._readers()
        plan, low = self._plan_of(readers), min(step for _, step in readers)
        return plan.next_use(chunks, plan.own(self.start(low)))

    def _before(self, step: int) -> float:
        """When a chunk of this step's batch is needed."""
        if self._make_plan is None:
            return 0.0
        return float(self._plan_of(self._readers()).own(self.start(step)))

    def _plan_of(self, readers: list[tuple[int, int]]) -> Plan:
        ranks = sorted({rank for rank, _ in readers} | {self.rank})
        with self._lock:
            if self._plan is None or self._plan.ranks != ranks:
                assert self._make_plan is not None
                self._plan = self._make_plan(ranks)
            return self._plan

    def _prefetch(self) -> None:
        """Be the run's prefetcher as soon as there is no other, until this process ends."""
        with contextlib.suppress(OSError):
            while not self._closed.is_set():
                if (fd := self.cache.users.lead()) >= 0:
                    try:
                        return self._run(fd)
                    finally:
                        os.close(fd)
                self._closed.wait(0.2)

    def _run(self, fd: int) -> None:
        """Fetch what the readers need next, in the order of use."""
        work: Work = queue.Queue(FETCHERS)
        for _ in range(FETCHERS):
            threading.Thread(target=self._fetch_all, args=(work,), daemon=True).start()
        self._plan_ahead(work, fd)

    def _plan_ahead(self, work: Work, fd: int) -> None:
        """Hand out the chunks of each step once, so far ahead as a slow fetch takes."""
        following = -1
        began, first, said = time.monotonic(), -1, -SAID
        while not self._closed.is_set():
            readers = self._readers()
            low, high = min(s for _, s in readers), max(s for _, s in readers)
            first = low if first < 0 else first
            pace = (low - first) / max(time.monotonic() - began, 1e-3)  # steps a second
            if time.monotonic() - said > SAID:
                said = time.monotonic()
                self._say_in_use(fd, low, high + self._ahead(pace) + math.ceil(pace * SAID))
            behind, self._behind = self._behind, NONE
            following = max(low, min(following, behind))
            if behind < NONE or following > high + self._ahead(pace):
                self._closed.wait(PAUSE)
                continue
            plan, position = self._plan_of(readers), self.start(following)
            for k in plan.needs(following, position - following * plan.batch).tolist():
                if not self.cache.path(k).exists():
                    self._hand_out(work, (k, following))
            following += 1

    def _say_in_use(self, fd: int, low: int, high: int) -> None:
        """Let runs of other orders see what this one has in use from one step to another."""
        chunks = np.zeros(0, np.int64)
        if self.cache.users.others():
            plan = self._plan_of(self._readers())
            chunks = plan.in_use(plan.own(self.start(low)), plan.own(self.start(high + 1)))
        with contextlib.suppress(OSError):
            say_in_use(fd, chunks)

    def _hand_out(self, work: Work, item: tuple[int, int]) -> None:
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                work.put(item, timeout=0.2)
                return

    def _ahead(self, pace: float) -> int:
        """Batches: at least four, and what is read while the slowest in a hundred fetches goes."""
        if not self._seconds:
            return AHEAD
        slowest = float(np.quantile(np.array(self._seconds), 0.99))
        return min(MOST_AHEAD, max(AHEAD, math.ceil(slowest * pace) + 1))

    def _fetch_all(self, work: Work) -> None:
        """One of the threads; what it cannot have is asked for again from that step on."""
        while not self._closed.is_set():
            try:
                k, step = work.get(timeout=0.2)
            except queue.Empty:
                continue
            try:
                file = self._get(k, step)
            except Exception:  # whoever needs the chunk meets it too, and says so
                self._closed.wait(1)
                file = None
            if file is None:
                self._behind = min(self._behind, step)
            else:
                file.close()


def shortage(plan: Plan, lengths: NDArray[Any], limit: int, spread: int, position: int = 0) -> int:
    """The bytes that a node's chunks need that are in use at a time, where a limit is below them;
    else 0.

    lengths: (K,) bytes of each chunk. spread: steps that lie between the readers of a node.
    """
    costs = (-(-lengths.astype(np.int64) // BLOCK) + 1) * BLOCK
    ahead = plan.own(position + spread * plan.batch) - plan.own(position)
    need = plan.working_set(costs, ahead, plan.own(position)) + SPARE
    return 0 if need <= limit else need
