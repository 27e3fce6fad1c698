"""The goodput ledger: every second of a run's wall time has one cause.

Rank 0 adds to `events.jsonl` what its phases took (`vtx_scale.distributed.phases`), every ten
seconds and at the end:

    {"kind":"time","from":unix,"to":unix,"seconds":{cause: s},"behind":n,"step":n,"attempt":id}

whose seconds add up to to - from; behind and step: finished steps at its two ends. Whoever sees an
attempt end, itself or its launcher, adds

    {"kind":"end","at":unix,"code":n,"attempt":id,"since":unix}

since: from when on an attempt that hung came no further, where that is known.
The rest is the reader's: what lies between two attempts is "stopped" where the end before was asked
for, else "detect" until somebody saw it and "down" from then on; the steps that a later attempt
did again are "lost". These lines are never cut, also where a resume cuts the metrics. Standard
library alone.
"""

import math
import os
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from vtx_scale.data_pipeline.objects import AnyPath
from vtx_scale.distributed.phases import CAUSES, PHASES, Phases
from vtx_scale.trainer.lines import written
from vtx_scale.trainer.output import PLACE, add, append, json_line

FILE = "events.jsonl"
EVERY = 10.0  # seconds of a line
LAST = 5.0  # seconds that the last lines may take to be written
ASKED = (0, 75, 130)  # exit codes of a run that somebody wanted to end, or that is done
REDONE = ("step", "data_wait")  # causes that are "lost" where steps are done again


@dataclass(frozen=True)
class Goodput:
    """Where a run's time went.

    seconds: by cause, which add up to the wall time. wall: seconds from the start of the first
    attempt to the last line. share: of the wall time in which nobody had stopped the run, that in
    which it did steps which count; 0 where there is none.
    """

    seconds: dict[str, float]
    wall: float
    share: float


def attempt_name(epoch: int, round: int) -> str:
    """One start of the ranks of a run: which lease, and which round under it."""
    return f"{epoch:04d}-{round:03d}"


def this_attempt(epoch: int) -> str:
    """Of this process: as its launcher counts, else by the clock."""
    if "VTX_ROUND" in os.environ:
        return attempt_name(epoch, int(os.environ["VTX_ROUND"]))
    return f"{epoch:04d}-{int(time.time()):x}"


def ended(folder: AnyPath, attempt: str, code: int, since: float | None = None) -> None:
    """In the events: an attempt has ended, which is seen now. code: of its exit, negative for a
    signal. since: in Unix time, from when on it came no further.
    """
    about = {"kind": "end", "at": time.time(), "code": code, "attempt": attempt}
    append(folder / FILE, json_line(about | ({} if since is None else {"since": since})))


def read(folder: AnyPath) -> Goodput:
    """Of all attempts of the run in a folder. Raises OSError where its events cannot be read."""
    return tally(written(folder / FILE))


class Times:
    """What this process adds to the events; one a process. A thread writes, so that nobody waits
    for a disk.
    """

    def __init__(self, phases: Phases = PHASES, every: float = EVERY) -> None:
        """every: in seconds."""
        self.phases, self.every = phases, every
        self._thread: threading.Thread | None = None

    def begin(self, folder: AnyPath, attempt: str, step: int) -> None:
        """From here on the process goes on from a step, which its phases are given; where it goes
        back, what it did until now ends with a line.
        """
        if self._thread is not None:
            self.cut()
            self.phases.step = self._behind = step
            return
        self.folder, self.attempt = folder, attempt
        self.phases.step = self._behind = step
        # the wall clock is asked once: it may jump
        self._wall = time.time() - time.monotonic()
        self._at, self._spent = self.phases.began, dict[str, float]()
        self._waiting: deque[dict[str, Any]] = deque()
        self._lock, self._wake, self._done = threading.Lock(), threading.Event(), False
        self._before: tuple[float, float] | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.cut()

    def cut(self, least: float = 0.0) -> None:
        """End a line here, as where a checkpoint is; not where it would be shorter than `least`
        seconds.
        """
        if self._thread is None:
            return
        with self._lock:
            now, spent = self.phases.seconds()
            if now - self._at < least:
                return
            new = {c: round(spent[c] - self._spent.get(c, 0.0), 6) for c in spent}
            step = max(self.phases.step, 0)
            self._waiting.append(
                {
                    "kind": "time",
                    "from": round(self._wall + self._at, 6),
                    "to": round(self._wall + now, 6),
                    "seconds": {c: s for c, s in new.items() if s > 0},
                    "behind": self._behind,
                    "step": step,
                    "attempt": self.attempt,
                }
            )
            self._at, self._spent, self._behind = now, spent, step
        self._wake.set()

    def share(self) -> float | None:
        """The run's so far, earlier attempts included; None while that is not known."""
        if self._thread is None or self._before is None:
            return None
        now, spent = self.phases.seconds()
        productive, whole = self._before
        whole += now - self.phases.began
        return (productive + spent.get("step", 0.0)) / whole if whole > 0 else None

    def close(self, code: int) -> None:
        """The process is at the end of its run. code: with which it exits."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._thread = thread
        self.cut()
        with self._lock:
            at = round(self._wall + time.monotonic(), 6)
            self._waiting.append({"kind": "end", "at": at, "code": code, "attempt": self.attempt})
        self._done = True
        self._wake.set()
        thread.join(LAST)
        self._thread = None

    def _run(self) -> None:
        first = True
        while not (self._done and not self._waiting):
            if not self._wake.wait(self.every) and not self._done:
                self.cut()
            self._wake.clear()
            while self._waiting:
                line = json_line(self._waiting.popleft())
                path = self.folder / FILE
                PLACE.folder = self.folder
                PLACE.attempt(FILE, partial(add, path, line))
                if first:
                    first = False
                    PLACE.attempt(FILE, partial(self._look_back, line))

    def _look_back(self, line: bytes) -> None:
        """What share begins with. Raises OSError."""
        lines = written(self.folder / FILE)
        mine = [e for e in lines if e.get("attempt") == self.attempt]
        before = tally([e for e in lines if e.get("attempt") != self.attempt] + mine)
        own = tally(mine)
        productive = before.seconds.get("step", 0.0) - own.seconds.get("step", 0.0)
        whole = before.wall - before.seconds.get("stopped", 0.0) - own.wall
        self._before = (max(productive, 0.0), max(whole, 0.0))


TIMES = Times()
Mark = tuple[float, bool, str]


@dataclass(frozen=True)
class Line:
    """A time line, with what lies on both its sides in the same attempt."""

    start: float
    stop: float
    seconds: dict[str, float]
    behind: int
    step: int
    attempt: str


def tally(entries: Iterable[dict[str, Any]]) -> Goodput:
    """Where the time went that events tell of; see `Goodput`. What is no event is passed over.

    Overlaps belong to the newer attempt, and a hole in an attempt to the line behind it.
    """
    entries = list(entries)
    hung = {str(e.get("attempt")): at for e in entries if (at := since_of(e)) is not None}
    lines = in_order([line for e in entries if (line := line_of(e)) is not None], hung)
    marks = sorted(mark for e in entries if (mark := mark_of(e)) is not None)
    found: dict[str, float] = defaultdict(float)
    floors = restarts(lines)
    for i, line in enumerate(lines):
        if i and lines[i - 1].stop < line.start:
            for cause, seconds in gap(lines[i - 1], line.start, marks).items():
                found[cause] += seconds
        lost = redone(line, floors[i])
        for cause, seconds in line.seconds.items():
            share = lost if cause in REDONE else 0.0
            found["lost"] += seconds * share
            found[cause] += seconds * (1 - share)
    wall = lines[-1].stop - lines[0].start if lines else 0.0
    running = wall - found["stopped"]
    share = found["step"] / running if running > 0 else 0.0
    return Goodput({c: found[c] for c in CAUSES if found[c] > 0}, wall, min(share, 1.0))


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def line_of(entry: dict[str, Any]) -> Line | None:
    """Of an event; None where it is no time line."""
    start, stop, seconds = number(entry.get("from")), number(entry.get("to")), entry.get("seconds")
    step = number(entry.get("step", 0))
    behind = number(entry.get("behind", step))
    if entry.get("kind") != "time" or not isinstance(seconds, dict):
        return None
    if start is None or stop is None or step is None or behind is None or stop <= start:
        return None
    spent = {c: s for c in CAUSES if (s := number(seconds.get(c))) is not None and s > 0}
    return Line(start, stop, spent, int(behind), int(step), str(entry.get("attempt")))


def mark_of(entry: dict[str, Any]) -> Mark | None:
    """(when, whether it was asked for, of which attempt) of an event that tells of an end, else
    None.
    """
    at = number(entry.get("at"))
    if entry.get("kind") != "end" or at is None:
        return None
    return at, entry.get("code") in ASKED, str(entry.get("attempt"))


def since_of(entry: dict[str, Any]) -> float | None:
    """From when on an attempt came no further, of an event that tells of its end, else None."""
    return number(entry.get("since")) if entry.get("kind") == "end" else None


def in_order(lines: list[Line], hung: dict[str, float]) -> list[Line]:
    """By time, without overlaps: an attempt ends where it came no further, at the latest where the
    next begins. hung: by attempt, since when; what else it says of that time is waiting.
    """
    attempts: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        attempts[line.attempt].append(line)
    parts = sorted(
        (sorted(own, key=lambda x: (x.start, x.stop)) for own in attempts.values()),
        key=lambda own: (own[0].start, own[0].attempt),
    )
    out = []
    for i, own in enumerate(parts):
        end = parts[i + 1][0].start if i + 1 < len(parts) else math.inf
        at, last = own[0].start, i + 1 == len(parts)
        if not last:  # else nobody knows yet where the time behind it goes
            end = min(end, hung.get(own[0].attempt, end))
        for line in own:
            stop = min(line.stop, end)
            if stop > at:
                out.append(replace(line, start=at, stop=stop, seconds=filling(line, stop - at)))
                at = stop
    return out


def filling(line: Line, length: float) -> dict[str, float]:
    """A line's seconds, scaled so that they add up to a length."""
    whole = sum(line.seconds.values())
    if not whole:
        return {"down": length}
    return {cause: seconds * (length / whole) for cause, seconds in line.seconds.items()}


def restarts(lines: list[Line]) -> list[float]:
    """For each line: the first of the steps from which a later start went on, inf for none."""
    floors, floor = [math.inf] * len(lines), math.inf
    for i in reversed(range(len(lines) - 1)):
        line, later = lines[i], lines[i + 1]
        if later.attempt != line.attempt or later.behind < line.step:
            floor = min(floor, later.behind)
        floors[i] = floor
    return floors


def redone(line: Line, floor: float) -> float:
    """The share of a line's steps that a later start did again, which went on from step `floor`."""
    if line.step <= line.behind:  # within a step that was not finished
        return float(line.behind >= floor)
    return max(0.0, line.step - max(line.behind, floor)) / (line.step - line.behind)


def gap(last: Line, stop: float, marks: list[Mark]) -> dict[str, float]:
    """What is between an attempt's last line and the next attempt, by cause, from what was seen of
    its end; the system's clock of starts is coarse.
    """
    found: dict[str, float] = defaultdict(float)
    start = last.stop
    # the end of an attempt before this one, which may be an instant ago, says nothing of this one's
    seen = [m for m in marks if start - 1.0 <= m[0] and m[2] == last.attempt]
    seen = sorted(seen + [m for m in marks if start <= m[0] <= stop and m[2] != last.attempt])
    if not seen:
        return {"down": stop - start}
    at, cause = start, "stopped" if seen[0][1] else "detect"
    for when, asked, _ in seen:
        when = min(max(when, at), stop)
        found[cause] += when - at
        at, cause = when, "stopped" if asked or cause == "stopped" else "down"
    found[cause] += stop - at
    return found
