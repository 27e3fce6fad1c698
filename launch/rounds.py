"""How a round ends and whether another begins: what one machine and a cluster decide alike."""

import math
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from vtx_scale.checkpoints.format import steps
from vtx_scale.data_pipeline.objects import AnyPath
from vtx_scale.launch.paths import checkpoints_of
from vtx_scale.trainer.leave import Requests, requests
from vtx_scale.trainer.output import LAST, say, why

RETRIES = 3  # starts in a row that save nothing new
DECIDED = (2, 3, 4, 75)  # codes of a rank that says why it stopped
HUNG = 70  # of ranks that come no further
FOLLOW = 10.0  # seconds for the others to follow a rank that was asked to leave ...
SENDING = 5.0 + LAST  # ... where what they wrote last goes to a bucket first
FALL = 1.0  # ... or one that failed
AGAIN = 60.0  # seconds between two sentences on what is waited for

T = TypeVar("T")


def newest(folder: AnyPath) -> int:
    """The newest committed step, 0 for none."""
    return max(steps(checkpoints_of(folder)), default=0)


def patiently(folder: AnyPath, ask: Callable[..., T], *about: Any) -> T | None:
    """What a storage answers, as soon as it does; None where the run is asked to leave before.
    Raises whatever is no OSError.
    """
    again = -math.inf
    while not requests.wanted():
        try:
            return ask(*about)
        except OSError as e:
            if time.monotonic() >= again:
                again = time.monotonic() + AGAIN
                say(f"{folder} does not answer ({why(e)}): waiting for it")
            time.sleep(1)
    return None


@dataclass
class Watch:
    """The exit codes of a round as they come in, of all its ranks.

    bucket: whether the run folder lies in one. first: the rank with which the failure began, as far
    as one can tell, and its code.
    """

    bucket: bool = False
    first: tuple[int, int] | None = None
    deadline: float = math.inf

    def over(self, codes: Mapping[int, int | None]) -> bool:
        """Whether the round has come to an end: all ranks have, or one failed and the others had
        time to follow.
        """
        failed = {rank: code for rank, code in codes.items() if code}
        if failed and self.deadline == math.inf:
            # a rank that ended by decision decided with the others: they have time to follow
            limit = FOLLOW if 75 in failed.values() else FALL
            if self.bucket and any(code in DECIDED for code in failed.values()):
                limit = SENDING
            self.deadline = time.monotonic() + limit
        if failed:
            first = min(failed.items(), key=lambda item: blame(item[1]))
            if self.first is None or blame(first[1]) < blame(self.first[1]):
                self.first = first
        return None not in codes.values() or time.monotonic() > self.deadline

    def verdict(self, codes: Mapping[int, int | None]) -> tuple[int, int]:
        """(the rank that says how the round ended, its code): (0, 0) where all came to the end.

        A rank that says why it stopped is believed, else the first that failed.
        """
        failed = [(rank, code) for rank, code in codes.items() if code]
        decided = [(rank, code) for rank, code in failed if code in DECIDED]
        if decided:
            return decided[0]
        return self.first or next(iter(failed), (0, 0))


def blame(code: int) -> int:
    """Of ranks that failed at once, the one with the least is where it began: a lost rank takes the
    others with it.
    """
    return 0 if code < 0 else 1


def left(requests: Requests, code: int) -> int | None:
    """The exit code of a run that came to its end or was asked to leave, None where it may go on.

    75 for our own SIGTERM too, which struck before a rank listened: there was nothing yet.
    """
    if code in (0, *DECIDED, 130):
        return code
    if requests.asked:
        return 75 if code == -signal.SIGTERM else 1
    return None


@dataclass
class Tries:
    """Starts that failed, since the last one that saved something.

    last: the newest committed step that was seen. gone: at which one a machine was lost.
    """

    last: int
    failures: int = 0
    gone: dict[str, int] = field(default_factory=dict)

    def lost_again(self, machines: set[str], now: int) -> bool:
        """Whether one of these machines, which are lost, was lost before without a newer step since
        than `now`.
        """
        again = any(self.gone.get(name) == now for name in machines)
        self.gone |= dict.fromkeys(machines, now)
        return again

    def failed(self, now: int) -> bool:
        """One more failure, at which the newest step was `now`; whether the run is given up."""
        # a roll-back begins at an older one
        self.failures = 1 if now != self.last else self.failures + 1
        self.last = now
        return self.failures > RETRIES


def reason(code: int) -> str:
    """How a worker ended, for people."""
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def start_of(step: int) -> str:
    """Where the next round begins, for people."""
    return f"step {step}" if step else "the beginning"
