"""Whether the ranks of a run come on, and which of them is stuck: judged by their heartbeats alone.
Standard library alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

# how long a phase may show no sign of progress, in times of `system.timeout`; a phase that is not
# here for as long as it likes, since what it waits for has limits of its own
FLOORS = {"step": 5.0, "save_stall": 5.0, "evaluate": 10.0, "start.load": 10.0}
FLOORS |= {"start.compile": 30.0}
USUAL = 5.0  # times what a rank usually needs in a phase
SILENT = 10.0  # times `system.timeout` without a beat, in a phase that has no limit
DATA = ("data_wait", "evaluate.data")  # a rank that waits for its loader


@dataclass(frozen=True)
class Beat:
    """A rank as its last heartbeat and the system show it. All times are seconds.

    step: finished steps, -1 before the first beat. idle: since its last sign of progress. silent:
    since its last beat. inside: whether in a collective; collectives: entered so far. usual: see
    `vtx_scale.distributed.phases.State`. still: whether the process is stopped. host, pid: where.
    """

    rank: int
    phase: str
    step: int
    idle: float
    silent: float = 0.0
    inside: bool = False
    collectives: int = 0
    usual: float = 0.0
    still: bool = False
    host: str = ""
    pid: int = 0


@dataclass(frozen=True)
class Verdict:
    """A run that hangs. beat: of the rank that is stuck, None where none stands out; seconds: that
    it has come no further; waiting: ranks that wait for others.
    """

    beat: Beat | None
    seconds: float
    waiting: tuple[int, ...]

    def __str__(self) -> str:
        waiting = f", ranks {', '.join(map(str, self.waiting))} wait for it" if self.waiting else ""
        if self.beat is None:
            return (
                f"all ranks have waited {self.seconds:.0f} s in the same collective: look at the "
                "network between them"
            )
        how = "is stopped" if self.beat.still else "hangs"
        at = f"in {self.beat.phase}, step {max(self.beat.step, 0) + 1}"
        where = f" on {self.beat.host}" if self.beat.host else ""
        return f"rank {self.beat.rank}{where} {how} {at}, since {self.seconds:.0f} s{waiting}"


def waits(beat: Beat, beats: Sequence[Beat]) -> bool:
    """Whether a rank waits for others: in a collective, also in one of torch's own, which shows by
    that it has entered more of them than another rank.
    """
    if beat.inside or beat.phase != "step":
        return beat.inside
    return any((b.step, b.collectives) < (beat.step, beat.collectives) for b in beats)


def limit(beat: Beat, timeout: float, waits: bool) -> float:
    """Seconds that a rank may show no progress where it stands. timeout: of a collective. waits:
    whether it is in one; one that has only entered more of them may be computing.
    """
    if beat.inside or beat.still:
        return timeout
    if waits and beat.usual:
        return timeout + beat.usual
    phase = "start.compile" if beat.phase == "step" and not beat.usual else beat.phase
    floor = FLOORS.get(phase, math.inf if beat.silent <= SILENT * timeout else SILENT)
    return max(floor * timeout, USUAL * beat.usual)


def judge(beats: Sequence[Beat], timeout: float) -> Verdict | None:
    """What is wrong with ranks that were looked at at one time, None where they come on.

    timeout: seconds that a collective may take. A rank that waits for its data is never stuck: its
    loader has limits of its own, and so have those that wait for it in a collective. One whose
    beats have ended may be anywhere by now.
    """
    late = [b for b in beats if stuck_for(b) > limit(b, timeout, waits(b, beats))]
    if not late:
        return None
    others = [b for b in beats if not b.inside or b.still]
    guilty = [b for b in others if b.still or b.phase not in DATA or b.silent > timeout]
    if others and not guilty:
        return None
    if not others:  # all of them wait: for the one that has not come as far as the rest
        order = {(b.step, b.collectives) for b in beats}
        guilty = [b for b in beats if (b.step, b.collectives) == min(order)]
        if len(order) == 1 or len(guilty) == len(beats):
            return Verdict(None, max(stuck_for(b) for b in late), ())
    stuck = min(guilty, key=lambda b: (not b.still, b.step, b.collectives, -stuck_for(b)))
    waiting = tuple(b.rank for b in beats if waits(b, beats) and b is not stuck)
    return Verdict(stuck, stuck_for(stuck), waiting)


def stuck_for(beat: Beat) -> float:
    """Seconds without progress; of a stopped process, since it was stopped."""
    return beat.silent if beat.still else beat.idle
