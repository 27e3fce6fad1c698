"""The signals that ask a run to leave: one list, for launchers, ranks and their children."""

import contextlib
import signal
from collections.abc import Iterator


def leaving() -> tuple[signal.Signals, ...]:
    """SIGTERM, SIGINT, SIGUSR1 (Slurm's warning) and SIGHUP, the last unless it is ignored
    already, as under nohup.
    """
    asks = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return asks if ignored else (*asks, signal.SIGHUP)


def ignore_leaving() -> None:
    """In a child that a trainer ends itself: a signal to a whole group is the trainer's to answer.

    Of the main thread alone, as Python wants it.
    """
    for number in leaving():
        signal.signal(number, signal.SIG_IGN)


class Interruption:
    """Raises an exception in the main thread, but not where that would leave half a start of
    processes behind.
    """

    def __init__(self) -> None:
        self.depth = 0
        self.late: BaseException | None = None

    def interrupt(self, e: BaseException) -> None:
        """Raise it now, or at the end of what must not be interrupted."""
        if not self.depth:
            raise e
        self.late = e

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Raises at its end what came inside."""
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1
            late, self.late = self.late, None
            if late is not None:
                raise late


INTERRUPTION = Interruption()


@contextlib.contextmanager
def blocked() -> Iterator[None]:
    """Children that are started inside never get these signals: a mask is inherited."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, leaving())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
