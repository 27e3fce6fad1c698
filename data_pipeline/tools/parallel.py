"""The same work on many units in several processes; what comes out is in the order of the units."""

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.fork_server import preload
from vtx_scale.data_pipeline.loader import start_worker
from vtx_scale.data_pipeline.pool import Pool

AHEAD = 4  # units a process that are handed out before the first result is taken
U = TypeVar("U")
R = TypeVar("R")

_work: Callable[[Any], Any] | None = None  # of this process


def each(work: Callable[[U], R], units: Iterable[U], workers: int | Pool) -> Iterator[R]:
    """work(unit) of each unit, in their order.

    workers: processes, which end with this one; below 2 the work is done in this one; or a pool of
    them elsewhere. `work` is pickled once a process. Raises what `work` raises, and UserError where
    a process is ended.
    """
    if not isinstance(workers, int):
        yield from workers(work, units)
        return
    if workers < 2:
        yield from map(work, units)
        return
    preload(__name__)
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("forkserver"), initializer=begin, initargs=(work,)
    )
    ahead: deque[Future[R]] = deque()
    try:
        for unit in units:
            ahead.append(pool.submit(one, unit))
            if len(ahead) >= AHEAD * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
        pool.shutdown()  # with its semaphores, which a command that leaves at once would leave
    except BrokenProcessPool:
        raise UserError(
            f"One of {workers} worker processes was ended, perhaps for want of memory: "
            "run the same command again, with fewer of them by --workers."
        ) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def begin(work: Callable[[Any], Any]) -> None:
    """Runs first in each process."""
    global _work
    start_worker()
    _work = work


def one(unit: Any) -> Any:
    """The work of this process on a unit."""
    assert _work is not None
    return _work(unit)
