"""What this process is doing, at any moment, and where its time has gone.

    with PHASES.within("data_wait"): ...

Phases are nested: an inner one takes its time from the outer. Each counts as the one of `CAUSES`,
those of the ledger in `vtx_scale.trainer.goodput`, that its name begins with ("evaluate.data" as
"evaluate"), or as "step". Between two of them stand collectives, which
take no time from a phase and are counted beside it. The main thread writes, any thread may read: a
heartbeat tells the launcher, so that a rank which comes no further can be named. Standard library
alone.
"""

import os
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CAUSES = (
    *("start.import", "start.rendezvous", "start.load", "start.compile"),
    *("data_wait", "step", "evaluate", "save_stall", "lost", "detect", "down", "stopped"),
)
OLDEST = 300.0  # seconds: a process that is older did something else before
KEPT = 512  # visits of a phase, from which its usual stretch without a sign of progress is known
FEW = {"step": 4}  # visits of a phase that say nothing yet: the first steps are not like the others


@dataclass(frozen=True)
class State:
    """Where a process stands.

    step: finished steps. since: of the last sign of progress, in seconds of the monotonic clock.
    inside: whether in a collective. collectives: entered so far. usual: of 99 in 100 visits of this
    phase the longest stretch without a sign of progress was shorter, in seconds; 0 where there were
    too few yet.
    """

    phase: str
    step: int
    since: float
    inside: bool
    collectives: int
    usual: float


class Phases:
    """The phases of a process, from its start on; one a process."""

    def __init__(self) -> None:
        self.reset(began())

    def reset(self, at: float | None = None) -> None:
        """As a process that began then, in seconds of the monotonic clock; now where None."""
        self.began = time.monotonic() if at is None else at
        self.step = 0  # finished steps
        self.waited = 0.0  # seconds in collectives
        # collectives of torch's own too, where somebody can count them
        self.counter: Callable[[], int] | None = None
        self._phase, self._entered, self._depth = "start.import", 0, 0
        self._turned = self._since = self.began
        self._longest = 0.0  # stretch of this visit that has ended, in seconds
        self._count = 0  # of collectives at the last look
        self._seconds: dict[str, float] = defaultdict(float)
        self._stretches: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=KEPT))
        self._lock = threading.Lock()

    def within(self, phase: str) -> "Within":
        """While inside, the process is in this phase."""
        return Within(self, phase)

    def collective(self) -> "Collective":
        """While inside, the process may wait for other ranks."""
        return Collective(self)

    def turn(self, phase: str) -> str:
        """Be in this phase from now on; the one before."""
        now = time.monotonic()
        with self._lock:
            before = self._phase
            self._seconds[before] += now - self._turned
            self._stretches[before].append(max(self._longest, now - self._since))
            self._longest = 0.0
            self._turned = self._since = now
            self._phase = phase
        return before

    def mark(self) -> None:
        """A sign of progress within a phase; one of the main thread, where another calls it too."""
        if threading.current_thread() is threading.main_thread():
            with self._lock:
                self._progress(time.monotonic())

    def _progress(self, now: float) -> None:
        self._longest = max(self._longest, now - self._since)
        self._since = now

    def enter(self) -> float:
        """Of `Collective`: one begins; the time."""
        now = time.monotonic()
        self._entered += 1
        self._depth += 1
        self._longest = max(self._longest, now - self._since)
        self._since = now
        return now

    def leave(self, began: float) -> None:
        """Of `Collective`: it has ended, which began then."""
        now = time.monotonic()
        self._depth -= 1
        if not self._depth:
            self.waited += now - began
        self._since = now

    def state(self) -> State:
        """Where the process stands now. For any thread. A collective of torch's own that began
        since the last call is a sign of progress, as of now.
        """
        count = self._entered if self.counter is None else self.counter()
        with self._lock:
            if count > self._count and self.counter is not None:
                self._progress(time.monotonic())
            self._count = count
            phase, since = self._phase, self._since
            stretches = list(self._stretches.get(phase, ()))
        enough = len(stretches) >= FEW.get(phase, 1)
        usual = sorted(stretches)[len(stretches) * 99 // 100] if enough else 0.0
        return State(phase, self.step, since, self._depth > 0, count, usual)

    def seconds(self) -> tuple[float, dict[str, float]]:
        """(now, seconds by cause since `began`, which add up to now - began). For any thread.

        Times are those of the monotonic clock.
        """
        with self._lock:
            now, phase, turned = time.monotonic(), self._phase, self._turned
            spent = dict(self._seconds)
        spent[phase] = spent.get(phase, 0.0) + now - turned
        found: dict[str, float] = defaultdict(float)
        for name, value in spent.items():
            found[cause_of(name)] += value
        return now, dict(found)


def cause_of(phase: str) -> str:
    """What a phase counts as."""
    cause = phase if phase in CAUSES else phase.partition(".")[0]
    return cause if cause in CAUSES else "step"


class Within:
    """What `Phases.within` gives; not to be entered twice."""

    __slots__ = ("before", "phase", "phases")

    def __init__(self, phases: Phases, phase: str) -> None:
        self.phases, self.phase = phases, phase

    def __enter__(self) -> None:
        self.before = self.phases.turn(self.phase)

    def __exit__(self, *_: object) -> None:
        self.phases.turn(self.before)


class Collective:
    """What `Phases.collective` gives; not to be entered twice."""

    __slots__ = ("began", "phases")

    def __init__(self, phases: Phases) -> None:
        self.phases = phases

    def __enter__(self) -> None:
        self.began = self.phases.enter()

    def __exit__(self, *_: object) -> None:
        self.phases.leave(self.began)


def began() -> float:
    """When this process began, in seconds of the monotonic clock; now where the system does not
    say.
    """
    now = time.monotonic()
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return now
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return now
    return now - max(age, 0.0) if age < OLDEST else now


PHASES = Phases()
os.register_at_fork(after_in_child=PHASES.reset)
