"""Which ranks run where: pure decisions, so that they can be read and tested without a cluster."""

import math
import statistics
from collections.abc import Sequence

DAY = 86_400.0
# the score from which on a machine is left out where the run can do without it: two faults in a day
EXCLUDED = 1.5


def admitted(low: int, high: int, unit: int) -> list[int]:
    """The worlds from low to high that are multiples of `unit`: ranks that share a model."""
    return [world for world in range(low, high + 1) if world % unit == 0]


def admit(slots: int, low: int, high: int, unit: int = 1) -> int:
    """The largest world that the slots have room for, 0 where there is none."""
    return max((w for w in admitted(low, min(high, slots), unit)), default=0)


def layout(world: int, slots: Sequence[int], axis: int = 1) -> list[int]:
    """How many ranks each machine has, of those with so many slots, of which there are enough.

    The first machines are filled first. Ranks `axis` in a row share heads and hidden units, and
    stay on one machine as long as there is room for that.
    """
    ranks = [0] * len(slots)
    for unit in (axis, 1):
        for i, room in enumerate(slots):
            more = min(room - ranks[i], world - sum(ranks))
            ranks[i] += more - more % unit
    return ranks


def slow(rates: Sequence[float]) -> list[int]:
    """The machines of a ring that are slow both ways; rates[i]: from machine i to the next.

    Slow is less than a quarter of the median; of a slow pair alone nobody can say which it is.
    """
    limit = statistics.median(rates) / 4
    return [i for i, rate in enumerate(rates) if max(rate, rates[i - 1]) < limit]


def score(faults: Sequence[float], now: float) -> float:
    """How bad a machine is by the times of its faults: 1 each, halved with every day since."""
    return sum(math.exp2(-max(0.0, now - time) / DAY) for time in faults)
