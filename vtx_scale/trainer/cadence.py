"""When to save: every so many steps, or as often as faults are worth it.

A save that holds up the run for s seconds, every T seconds of a run that meets a fault every M
seconds, costs s / T + T / 2M of its time: least at T = sqrt(2 s M) (Young 1974, Daly 2006).
"""

import math
import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import Literal

WARM = 20  # steps of a start before the save that is measured
LOOK = 10  # steps behind it, at which the interval is chosen
DAY = 86_400.0  # seconds
MEMORY = 0.01  # of the time of a run, what snapshots in memory may cost


class Cadence:
    """At which steps of this start a checkpoint is due, the same on every rank.

    every: steps, 0 for never, or "auto", by faults a rank a day. share: takes numbers, and returns
    rank 0's on every rank; all ranks call it at the same step. say: takes a line.
    """

    def __init__(
        self,
        every: int | Literal["auto"],
        faults: float,
        world: int,
        share: Callable[[list[float]], list[float]],
        say: Callable[[str], None],
    ) -> None:
        self.every, self.mean = every, DAY / (faults * world)  # seconds between two faults
        self.share, self.say = share, say
        self.seconds: deque[float] = deque(maxlen=50)  # of the newest steps
        self.stall = 0.0  # seconds for which the newest save held up the run
        self.first = self.last = -1  # the steps of the first look and of the save that is measured
        self.interval = 0
        self._at = 0.0

    def due(self, step: int, written: float) -> bool:
        """Whether to save behind a step; to be asked once a step.

        written: seconds that the writing of the newest save took, so far if it goes on.
        """
        if self.every != "auto":
            return bool(self.every and step % self.every == 0)
        now, before = time.perf_counter(), self._at
        self._at = now
        if self.first < 0:
            self.first = step
        elif step > self.first + 1 and step != self.last + 1:  # compiling, and saving
            self.seconds.append(now - before)
        if self.last < 0:
            if step >= self.first + WARM:
                self.last = step
                return True
            return False
        if not self.interval and step == self.last + LOOK:
            self.choose(written)
        if self.interval and step >= self.last + self.interval:
            self.last = step
            return True
        return False

    def choose(self, written: float) -> None:
        """The interval, of what rank 0 measured; never shorter than a save takes to write."""
        mine = [self.stall, statistics.median(self.seconds), written]
        stall, step, write = self.share(mine)
        wanted = max(math.sqrt(2 * stall * self.mean), write)
        self.interval = max(1, math.ceil(wanted / max(step, 1e-6)))
        self.say(
            f"checkpoint.every=auto: a save holds up {stall:.3f} s, a step takes {step:.3f} s, a "
            f"fault is expected every {self.mean / 3600:,.1f} h: saving every {self.interval:,} "
            "steps"
        )


class MemoryCadence(Cadence):
    """At which steps of this start a snapshot in memory is due: "auto" as often as costs at most
    `MEMORY` of the time.

    beside: whether what is written in the background is computed where the steps are.
    """

    def __init__(
        self,
        every: int | Literal["auto"],
        beside: bool,
        share: Callable[[list[float]], list[float]],
        say: Callable[[str], None],
    ) -> None:
        super().__init__(every, 1.0, 1, share, say)
        self.beside = beside

    def choose(self, written: float) -> None:
        """The interval, of what rank 0 measured; longer than a snapshot takes to write."""
        mine = [self.stall + written * self.beside, statistics.median(self.seconds), written]
        cost, step, write = self.share(mine)
        self.interval = max(1, math.ceil(max(cost / MEMORY, write) / max(step, 1e-6)))
        self.say(
            f"checkpoint.memory=auto: a snapshot costs {cost:.3f} s, a step takes {step:.3f} s: "
            f"one every {self.interval:,} steps is at most {MEMORY:.0%} of the time"
        )
