"""`log.to`: the numbers of a run for somebody else's dashboard.

A sink may be slow, raise or never answer: it is called on a thread of its own, which takes what
waits in a queue of bounded length. What does not fit there, and what the sink does not take, is
dropped and counted as the rest of what informs. Standard library alone.
"""

import collections
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from vtx_scale.trainer.output import PLACE, why

NAME = "log.to"
ROOM = 1000  # writes that wait at most
LAST = 10.0  # seconds at the end for what waits, and for the sink's own end


class Sink(Protocol):
    """What takes numbers; both are called on one thread, one after the other."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """step: finished steps, 1..N; of an evaluation the values come behind those of its step."""

    def close(self) -> None:
        """Nothing more comes."""


class Feed:
    """Hands numbers to a sink, which `begin` opens on the thread before the first of them.

    The thread begins with the first write: until then this process may fork.
    """

    def __init__(self, begin: Callable[[], Sink], room: int = ROOM) -> None:
        self.begin = begin
        self.waiting: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue(room)
        # of each write that the sink had, why it was not taken; read where it is said
        self.outcomes = collections.deque[str]()
        self.thread = threading.Thread(target=self._run, name=NAME, daemon=True)
        self.ending = threading.Event()

    def write(self, step: int, values: Mapping[str, object]) -> None:
        """Those of the values that are numbers. Never waits, never raises."""
        if self.thread.ident is None:
            self.thread.start()
        numbers = {k: float(v) for k, v in values.items() if isinstance(v, int | float)}
        try:
            self.waiting.put_nowait((step, numbers))
        except queue.Full:
            PLACE.failed(NAME, "the sink is behind")
        self._tell()

    def close(self, patience: float = LAST) -> None:
        """Wait for what is under way, at most so many seconds; the rest is dropped and counted."""
        if self.thread.ident is None:
            return
        end = time.monotonic() + patience
        with contextlib.suppress(queue.Full):
            self.waiting.put(None, timeout=patience)
        self.thread.join(max(0.0, end - time.monotonic()))
        self.ending.set()
        self._tell()
        if self.thread.is_alive():
            for _ in range(max(1, self.waiting.qsize())):
                PLACE.failed(NAME, "the sink did not come to its end")

    def _tell(self) -> None:
        """What became of earlier writes, from the thread that says such things."""
        while self.outcomes:
            if reason := self.outcomes.popleft():
                PLACE.failed(NAME, reason)
            else:
                PLACE.worked(NAME)

    def _run(self) -> None:
        sink, fault = None, ""
        try:
            sink = self.begin()
        except BaseException as e:  # of a library; nothing it does may end more than this
            fault = reason_of(e)
        while (entry := self.waiting.get()) is not None and not self.ending.is_set():
            self.outcomes.append(fault if sink is None else attempt(sink.write, *entry))
        if sink is not None and (reason := attempt(sink.close)):
            self.outcomes.append(reason)


def attempt(call: Callable[..., None], *arguments: object) -> str:
    """Why it failed, "" where it did not."""
    try:
        call(*arguments)
    except BaseException as e:  # of a library, sys.exit too
        return reason_of(e)
    return ""


def reason_of(e: BaseException) -> str:
    """One line of an exception."""
    return why(e) if isinstance(e, Exception) else type(e).__name__
