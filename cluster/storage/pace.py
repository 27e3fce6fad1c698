"""When a request is made, and made again: full jitter, and one rate for all of a process.

Standard library alone.
"""

import math
import random
import threading
import time
from collections.abc import Callable

TRIES = 8  # of one request
SHORTEST, LONGEST = 0.1, 20.0  # seconds: bounds of the first and of the last pause
RECOVERY = 10.0  # seconds in which a rate that was halved doubles
SLOWEST, FASTEST = 4.0, 16384.0  # requests a second; the latter is no limit in practice
TOGETHER = 0.5  # seconds within which refusals count as one: many threads meet them at once

_chance = random.SystemRandom()  # a run's own generators are left alone, and forks differ


def pause(tries: int) -> float:
    """Seconds to wait after `tries` failed tries: uniform below a bound that grows from SHORTEST to
    LONGEST.
    """
    grown = (LONGEST / SHORTEST) ** ((tries - 1) / (TRIES - 2))
    return _chance.uniform(0, min(LONGEST, SHORTEST * grown))


class Bucket:
    """Tokens, one a request, at a rate that halves where a server says that it is too much."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """clock, sleep: in seconds."""
        self.clock, self.sleep = clock, sleep
        self._lock = threading.Lock()
        self._rate, self._since = FASTEST, clock()  # requests a second, since when
        self._next = clock()  # when the next token is there
        self._second, self._taken, self._before = 0, 0, 0  # tokens of this second, and the last

    def rate(self) -> float:
        """Requests a second that are allowed now."""
        doubled = min(20.0, (self.clock() - self._since) / RECOVERY)
        return min(FASTEST, self._rate * math.pow(2, doubled))

    def take(self) -> None:
        """Wait for a token."""
        with self._lock:
            now = self.clock()
            self._count(int(now))
            self._taken += 1
            due = max(self._next, now)
            self._next = due + 1 / self.rate()
        if due > now:
            self.sleep(due - now)

    def halve(self) -> None:
        """A server was asked too much: half of what it was of late, at least four a second."""
        with self._lock:
            now = self.clock()
            if self._rate < FASTEST and now - self._since < TOGETHER:
                return
            self._count(int(now))
            asked = max(self._taken, self._before)
            self._rate, self._since = max(SLOWEST, min(self.rate(), asked) / 2), now

    def _count(self, second: int) -> None:
        if second != self._second:
            self._before = self._taken if second == self._second + 1 else 0
            self._second, self._taken = second, 0
