"""A job watched from anywhere: what it is doing, by its run folder first, and what it writes."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from vtx_scale.checkpoints.format import steps
from vtx_scale.cluster.jobs import Jobs, Silent
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.objects import AnyPath
from vtx_scale.launch import attempts
from vtx_scale.launch.attempts import ALIVE, ENDS, OVER, Attempt, End, Holder, State
from vtx_scale.launch.paths import checkpoints_of
from vtx_scale.launch.tail import Lines
from vtx_scale.trainer.output import say, why
from vtx_scale.trainer.segments import segments

T = TypeVar("T")
POLL = 1.0  # seconds between two looks at the run folder
ASK_RAY = 10.0  # seconds between two questions to Ray
LEFT = 5.0  # seconds that a job's last word may come later than Ray's


@dataclass(frozen=True)
class Look:
    """The newest attempt of a run, as it was found. ray: Ray's word and its message, each "" where
    it was not asked. fault: the sentence on a dashboard that was asked and does not answer.
    """

    attempt: Attempt
    state: State
    holder: Holder
    end: End | None
    ray: str = ""
    message: str = ""
    fault: str = ""

    @property
    def alive(self) -> bool:
        """Whether it runs or will."""
        return self.state in ALIVE

    @property
    def over(self) -> bool:
        """Whether it is known that it does not."""
        return self.state in OVER

    def sentence(self) -> str:
        """What it is doing, for people."""
        who = f", {self.holder.who}" if self.holder.who else ""
        if self.state == "ended" and self.end is not None:
            told = ENDS.get(self.end.code, f"ended with {self.end.code}")
            return f"{told} at step {self.end.step}{f': {self.end.text}' if self.end.text else ''}"
        if self.state == "lost":
            # Ray puts the end of the driver's log behind it
            cause = self.message.partition(", last available logs")[0].strip()
            return f"lost without a word{f' ({cause.splitlines()[0]})' if cause else ''}"
        if self.state == "waiting":
            return "waiting for a node with room for its driver"
        if self.state == "unknown":
            return "unknown: nobody holds its run folder, and no dashboard answers for it"
        return f"{self.state}{who}"


def look(folder: AnyPath, attempt: Attempt, jobs: Jobs | None) -> Look:
    """What has become of the newest attempt; up to half a minute where its holder is silent."""
    stop = attempts.stop_asked(folder, attempt.number)
    holder = attempts.holder_of(folder)
    word = message = fault = ""
    try:
        if jobs is not None:
            found = jobs.look(attempt.id)
            word, message = found.status, found.message
    except Silent as e:
        fault = str(e)
    age = time.time() - attempt.time
    end = attempts.end_of(folder, attempt.number)
    state = attempts.state_of(holder.word, word, end, stop, age)
    if state == "lost" and end is None:  # its last word may be on its way
        time.sleep(LEFT)
        end = attempts.end_of(folder, attempt.number)
        state = attempts.state_of(holder.word, word, end, stop, age)
    return Look(attempt, state, holder, end, word, message, fault)


def row_of(folder: AnyPath, found: Look) -> dict[str, Any]:
    """The same as one object of `vtx jobs status --json`."""
    last, end = last_line(folder), found.end
    return {
        "run": str(folder),
        "id": found.attempt.id,
        "attempt": found.attempt.number,
        "state": found.state,
        "step": last.get("step", max(steps(checkpoints_of(folder)), default=0)),
        "steps": found.attempt.recipe.get("steps"),
        "loss": last.get("loss"),
        "holder": found.holder.who,
        "code": end.code if end is not None and found.over else None,
        "why": end.text if end is not None and found.over else "",
        "ray": found.ray,
        "address": found.attempt.address,
        "submitted": found.attempt.time,
    }


def last_line(folder: AnyPath) -> dict[str, Any]:
    """The newest line of a run's metrics; empty where there is none."""
    path = folder / "metrics.jsonl"
    parts = [path] if path.is_file() else segments(path)[-1:]
    try:
        lines = parts[-1].read_bytes().splitlines() if parts else []
        row = json.loads(lines[-1]) if lines else {}
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}


class Stream:
    """Ray's own copy of what a driver writes, while the run folder has no line yet."""

    def __init__(self, jobs: Jobs | None, id: str) -> None:
        self.jobs, self.id, self.length = jobs, id, 0

    def new(self) -> list[str]:
        """The lines that have come; none where Ray cannot be asked."""
        try:
            text = self.jobs.log(self.id) if self.jobs is not None else ""
        except UserError:
            return []
        end = text.rfind("\n") + 1
        lines = text[self.length : end].splitlines()
        self.length = max(self.length, end)
        return lines


def follow(
    folder: AnyPath,
    attempt: Attempt,
    jobs: Jobs | None,
    write: Callable[[str], None],
    whole: bool = False,
    wait: bool = True,
) -> int:
    """Write the lines of an attempt as they come, until it has ended; its exit code, and 1 where it
    is gone without one. Where the run goes on as a later attempt, that one is followed. whole: from
    the first line of the run on; wait: False for what is there.
    """
    news, stream = patient(lambda: Lines(folder / "log.txt", whole)), Stream(jobs, attempt.id)
    while not isinstance(came := follow_one(folder, attempt, jobs, news, stream, write, wait), int):
        say(f"vtx: job {attempt.id} is gone without a word: the run goes on as {came.id}")
        attempt, jobs = came, cluster_of(came, jobs)
        stream = Stream(None, came.id)  # the run folder has lines by now
    return came


def follow_one(
    folder: AnyPath,
    attempt: Attempt,
    jobs: Jobs | None,
    news: Lines,
    stream: Stream,
    write: Callable[[str], None],
    wait: bool,
) -> int | Attempt:
    """As `follow`; the later attempt where there is one by the time that this one is gone."""
    first, asked, gone, doubted = True, time.monotonic(), 0, False
    while True:
        end = patient(lambda: attempts.end_of(folder, attempt.number))
        for line in patient(news.new):
            first = False
            write(line)
        now = time.monotonic()
        if first:
            for line in stream.new():
                write(line)
        if end is not None:
            if end.text:
                write(f"vtx: {end.text}")
            elif end.code == 75:
                say(
                    f"vtx: job {attempt.id} has saved and left at step {end.step}: "
                    f"'vtx jobs resume {folder}' goes on from there."
                )
            return end.code
        if not wait:
            return 0
        if now > asked + ASK_RAY:
            asked = now
            # the lease says that somebody is alive, not which attempt
            if (later := patient(lambda: later_than(folder, attempt))) is not None:
                if patient(lambda: attempts.end_of(folder, attempt.number)) is None:
                    return later
                continue
            # the lease is asked where Ray calls it over, or cannot be asked
            found = patient(lambda: look(folder, attempt, jobs)) if is_over(jobs, attempt) else None
            if found is not None and found.state == "unknown" and not doubted:
                doubted = True
                say(f"vtx: job {attempt.id} is {found.sentence()}: asking again")
            if found is not None and found.over:
                gone += 1
                if patient(lambda: attempts.end_of(folder, attempt.number)) is None and gone > 1:
                    say(
                        f"vtx: job {attempt.id} is gone without a word: "
                        f"'vtx jobs resume {folder}' goes on from its newest checkpoint."
                    )
                    return 1
        time.sleep(POLL)


def patient(ask: Callable[[], T]) -> T:
    """What a run folder says, as soon as it answers: the job does not end with a bucket that is
    away for a while.
    """
    told = False
    while True:
        try:
            return ask()
        except OSError as e:
            if not told:
                told = True
                say(f"the run folder does not answer ({why(e)}): asking again")
            time.sleep(POLL)


def later_than(folder: AnyPath, attempt: Attempt) -> Attempt | None:
    """The newest attempt of a run where it is a later one, which a supervisor has submitted."""
    later = attempts.newest(folder)
    return later if later is not None and later.number > attempt.number else None


def cluster_of(attempt: Attempt, jobs: Jobs | None) -> Jobs | None:
    """Where an attempt was submitted, None where that cannot be asked. jobs: the cluster before."""
    if jobs is None or jobs.address == attempt.address:
        return jobs
    try:
        return Jobs(attempt.address)
    except UserError:
        return None


def is_over(jobs: Jobs | None, attempt: Attempt) -> bool:
    """Whether Ray calls a job over, or does not answer."""
    try:
        return jobs is None or not jobs.look(attempt.id).alive
    except UserError:
        return True


def on_stdout(line: str) -> None:
    """A line of a log, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
