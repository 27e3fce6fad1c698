"""Requests to leave: signals, and `control/stop` in the run folder.

A first request is followed as soon as no finished step is lost by it: at once where the process
waits or prepares (`at_once`), else at the end of the step. A second one, or a main thread that does
not come to the place within its patience (stuck in a collective, in a compiler, in a dead file
system), ends the process at once with what is committed. A thread watches, because Python answers
signals in the main thread alone and only between two of its own operations.

Standard library alone, so that a launcher listens without torch.
"""

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Protocol

from vtx_scale.data_pipeline.signals import INTERRUPTION, leaving
from vtx_scale.data_pipeline.system import wake_pipe
from vtx_scale.trainer.output import to_descriptor

PATIENCE = 30.0  # seconds between a request and the end of the step or of the wait
SAME_REQUEST = 0.3  # seconds: a signal to a group and its launcher's own arrive as two
LOOK_EVERY = 0.5  # seconds between two looks at the stop file


class Exists(Protocol):
    """What can be there or not."""

    def exists(self) -> bool:
        """Whether it is there."""


class Leave(BaseException):
    """This process is asked to leave and nothing is lost by it.

    Of BaseException, so that no reader's or library's `except Exception` takes it for its own.
    """


class Requests:
    """What asks this process to leave. `listen` starts it; one a process."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """As nobody had asked."""
        self.asked = False
        self.count = self.last = 0  # requests, what arrives together being one; the last signal
        self._first = self._latest = 0.0  # when
        self.patience = PATIENCE
        self.stop_file: Exists | None = None
        self.announces = True
        self.repeated: Callable[[int], None] = self.end_at_once
        # whether a finished step would be lost if the process ended now
        self.unsaved: Callable[[], bool] = lambda: False
        self._open = False  # a request may interrupt
        self._saving = False
        self._listens = False

    @contextlib.contextmanager
    def listen(self) -> Iterator[None]:
        """Take the signals while inside. In another thread than the main one (as under Ray)
        nothing is listened to: there the stop file and the launcher speak.
        """
        if self._listens or threading.current_thread() is not threading.main_thread():
            yield
            return
        self._pipe = reader, writer = wake_pipe()
        before: dict[int, Any] = {n: signal.signal(n, self._answer) for n in leaving()}
        wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self._listens = True
        self._start_watch()
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            self._end_watch()
            os.close(reader)
            os.close(writer)
            self.reset()

    @contextlib.contextmanager
    def without_thread(self) -> Iterator[None]:
        """Nobody watches inside, so that the process may be forked; what comes is heard after."""
        if not self._listens:
            yield
            return
        self._end_watch()
        try:
            yield
        finally:
            self._start_watch()

    def _start_watch(self) -> None:
        self._done = threading.Event()
        self._watcher = threading.Thread(
            target=self._watch, args=(self._pipe[0], self._done), daemon=True
        )
        self._watcher.start()

    def _end_watch(self) -> None:
        self._done.set()
        os.write(self._pipe[1], b"\0")
        self._watcher.join()

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Where a request may interrupt. Raises Leave, also where it came before."""
        was = self._open
        try:
            self._open = True
            if self.asked and self._listens:
                raise Leave
            yield
        finally:
            self._open = was

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Patience rests: a checkpoint takes the time it takes."""
        self._saving = True
        try:
            yield
        finally:
            self._saving = False

    def wanted(self) -> bool:
        """Whether to leave; looks at the stop file too."""
        if self.stop_file is not None and self.stop_file.exists():
            self.asked = True
        return self.asked

    def end_at_once(self, number: int) -> None:
        """What a second request does: nobody waits any more."""
        os._exit(130 if number == signal.SIGINT else 1)

    def _answer(self, number: int, _: FrameType | None) -> None:
        self.asked = True
        if self._open:
            INTERRUPTION.interrupt(Leave())

    def _watch(self, reader: int, done: threading.Event) -> None:
        """In a thread of its own: count requests, tell of the first, lose patience."""
        ready = select.poll()  # select has no numbers above 1,023
        ready.register(reader, select.POLLIN)
        while True:
            ready.poll(LOOK_EVERY * 1000)
            if done.is_set():
                return
            for number in self._arrived(reader):
                now = time.monotonic()
                self.asked = True
                if self.count and now - self._latest < SAME_REQUEST:
                    continue
                self.count, self.last = self.count + 1, number
                self._first, self._latest = self._first or now, now
                if self.count > 1:
                    self.repeated(number)
                elif self.announces:
                    shout(
                        "leaving as soon as no step is lost, with a checkpoint; once more ends now"
                    )
            if not self.asked and self.wanted() and self._open:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            late = self._first and time.monotonic() - self._first > self.patience
            if late and not self._saving:
                self._lose_patience()

    def _arrived(self, reader: int) -> list[int]:
        try:
            return [n for n in os.read(reader, 64) if n in leaving()]
        except BlockingIOError:
            return []

    def _lose_patience(self) -> None:
        unsaved = self.unsaved()
        what = "steps after the newest checkpoint are lost" if unsaved else "no step is lost"
        shout(f"vtx: asked to leave {self.patience:.0f} s ago and still busy: ending now, {what}")
        os._exit(1 if unsaved else 75)


def shout(line: str) -> None:
    """To descriptor 2 itself: the main thread may hold the locks of the live line for ever."""
    with contextlib.suppress(Exception):
        to_descriptor(f"\n{line}\n" if os.isatty(2) else f"{line}\n")


requests = Requests()
