"""The jobs of a run, in its folder: what was submitted, how it ended, and whether one is alive.

    jobs/00000001.json       an attempt: its job's id, the cluster's address, the recipe
    jobs/00000001.end.json   its exit code and why, written by the job itself
    jobs/00000001.stop       somebody asked it to leave
    jobs/code-1a2b3c4d.zip   what an attempt imports

An attempt is one object that only one process can put. Which of them runs, the lease of the folder
says; what Ray says counts where nobody has taken it yet. Standard library alone.
"""

import json
import math
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypeVar

from vtx_scale.checkpoints import lease
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.objects import AnyPath, storage_of
from vtx_scale.data_pipeline.storage import Storage
from vtx_scale.launch.paths import lease_of

NAME = re.compile(r"(\d{8})\.json")
FRESH = 60.0  # seconds in which a job that was just submitted may be unknown to Ray
BARREN = 3  # attempts in a row that save nothing new, after which nobody should start another
PAUSES = (0.0, 10.0, 30.0, 60.0, 120.0, 300.0)  # seconds before an attempt, by those that failed

# what the lease says: renewed while one looked; not renewed for its ttl; nobody has it
Word = Literal["held", "silent", "free"]
# unknown: nobody has the lease, and Ray cannot be asked
State = Literal["waiting", "starting", "running", "stopping", "ended", "lost", "unknown"]
ALIVE: tuple[State, ...] = ("waiting", "starting", "running", "stopping")
OVER: tuple[State, ...] = ("ended", "lost")
FINAL = (0, 2, 3, 4)  # exit codes that another attempt would give again
ENDS = {0: "finished", 2: "refused", 3: "not finite", 4: "out of memory", 75: "left, saved"}


@dataclass(frozen=True)
class Attempt:
    """One job of a run. time: unix seconds; patience: minutes, None where it is endless; code: the
    object with what it imports; paths: the folders of a stranger's recipe where it was submitted;
    silent: [epoch, words] of a lease whose holder is known to be silent.
    """

    number: int
    id: str
    address: str
    time: float
    recipe: dict[str, Any]
    code: str
    patience: float | None = None
    debug: bool = False
    paths: list[str] = field(default_factory=list)
    silent: list[Any] | None = None


@dataclass(frozen=True)
class End:
    """How an attempt ended, by its own word. text: the sentence of an error; step: the newest
    checkpoint; time: unix seconds.
    """

    code: int
    text: str = ""
    step: int = 0
    time: float = 0.0


R = TypeVar("R", Attempt, End)


@dataclass(frozen=True)
class Holder:
    """What the lease of a run says. who: the holder's name for people. words: its epoch, and all
    that it says of itself.
    """

    word: Word
    who: str = ""
    words: lease.Words = field(default=(0, {}), compare=False)


def state_of(word: Word, ray: str, end: End | None, stop: bool, age: float) -> State:
    """What has become of the newest attempt.

    ray: Ray's word, "" where it cannot be asked; age: seconds since the attempt was submitted. The
    lease decides. A head that has come back may call a job alive that is not, for up to a minute.
    """
    if word == "held":
        return "stopping" if stop else "running"
    if end is not None:
        return "ended"
    if word == "silent":
        return "lost"
    if ray == "PENDING":
        return "waiting"
    if ray == "RUNNING" or (ray in ("", "UNKNOWN") and age < FRESH):
        return "starting"
    return "lost" if ray else "unknown"


def next_number(numbers: list[int]) -> int:
    """Of the attempt after those that were."""
    return max(numbers, default=0) + 1


def job_id(name: str, number: int, used: Callable[[str], bool]) -> str:
    """`<run>-<attempt>`; with a letter more where another run of the cluster had that, since Ray
    knows an id for ever.
    """
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "run"
    for letter in ("", *(chr(c) for c in range(ord("b"), ord("z") + 1))):
        if not used(id := f"{plain}-{number}{letter}"):
            return id
    raise UserError(f"The cluster has had too many jobs {plain}-{number}: name the run otherwise.")


def should(
    state: State, end: End | None, stop: bool, barren: int
) -> Literal["wait", "resume", "end"]:
    """What a supervisor does. barren: attempts in a row that saved nothing new."""
    if state in ALIVE or (state == "unknown" and not stop):
        return "wait"
    if stop or (end is not None and end.code in FINAL) or barren >= BARREN:
        return "end"
    return "resume"


def barren(steps: list[int]) -> int:
    """How many attempts saved nothing new since one did. steps: the newest checkpoint before the
    first attempt that was watched, and after each.
    """
    count = 0
    for before, after in zip(steps, steps[1:], strict=False):
        count = 0 if after > before else count + 1
    return count


def pause(barren: int) -> float:
    """Seconds before another attempt, after so many that saved nothing new."""
    return PAUSES[min(barren, len(PAUSES) - 1)]


def jobs_of(folder: AnyPath) -> Storage:
    """Where a run keeps its attempts."""
    return storage_of(folder / "jobs")


def numbers(folder: AnyPath) -> list[int]:
    """The attempts of a run, in order."""
    found = (NAME.fullmatch(name) for name in jobs_of(folder).list(""))
    return [int(match[1]) for match in found if match]


def newest(folder: AnyPath) -> Attempt | None:
    """The last attempt of a run, None of one that was never submitted."""
    there = numbers(folder)
    return read(folder, there[-1]) if there else None


def current(folder: AnyPath) -> Attempt | None:
    """The last attempt of a run that was not refused: what was submitted by mistake is nothing to
    go on with. The first where all were, None of a run that was never submitted.
    """
    attempt = None
    for number in reversed(numbers(folder)):
        attempt, end = read(folder, number), end_of(folder, number)
        if end is None or end.code != 2:
            break
    return attempt


def read(folder: AnyPath, number: int) -> Attempt:
    """An attempt. Raises UserError where it is no longer what was written."""
    name = f"{number:08d}.json"
    return record(Attempt, load(folder, name), f"{folder}/jobs/{name}", "'vtx submit'")


def record(kind: type[R], body: dict[str, Any], path: str, writer: str) -> R:
    """A record as it was written; what a newer version has put into it besides is left out.

    Raises UserError where something is missing.
    """
    known = {f.name for f in fields(kind)}
    try:
        return kind(**{key: value for key, value in body.items() if key in known})
    except TypeError:
        raise UserError(f"{path} is not what {writer} wrote: remove it.") from None


def claim(folder: AnyPath, attempt: Attempt) -> bool:
    """Make an attempt the run's; False where another process was first with this number."""
    body = json.dumps(asdict(attempt), indent=1).encode()
    return jobs_of(folder).put_if_absent(f"{attempt.number:08d}.json", body)


def end_of(folder: AnyPath, number: int) -> End | None:
    """How an attempt ended, None where it has not said. Raises UserError as `read`."""
    name = f"{number:08d}.end.json"
    body = load(folder, name)
    return record(End, body, f"{folder}/jobs/{name}", "its job") if body else None


def write_end(folder: AnyPath, number: int, end: End) -> None:
    """Say how an attempt ended. Raises OSError."""
    jobs_of(folder).put(f"{number:08d}.end.json", json.dumps(asdict(end)).encode())


def ask_to_stop(folder: AnyPath, number: int) -> None:
    """Say that somebody wants an attempt to leave, and have its ranks see it."""
    jobs_of(folder).put(f"{number:08d}.stop", b"asked to leave\n")
    storage_of(folder).put("control/stop", b"asked to leave\n")


def stop_asked(folder: AnyPath, number: int) -> bool:
    """Whether somebody asked an attempt to leave."""
    return (folder / "jobs" / f"{number:08d}.stop").is_file()


def load(folder: AnyPath, name: str) -> dict[str, Any]:
    """An object of `jobs/`; empty where it is not there or not JSON."""
    try:
        body = json.loads((folder / "jobs" / name).read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return body if isinstance(body, dict) else {}


def minutes(patience: float) -> float | None:
    """Endless patience as JSON has it."""
    return None if math.isinf(patience) else patience


def holder_of(
    folder: AnyPath, ttl: float = lease.TTL, sleep: Callable[[float], None] = time.sleep
) -> Holder:
    """What the lease of a run says, as soon as it can be known: it is looked at until its holder
    renews it, for `ttl` seconds at most.
    """
    storage = lease_of(folder)
    first, since = None, time.monotonic()
    while True:
        epoch = lease.newest(storage)
        body = lease.holder(storage, epoch) if epoch else {}
        who = str(body.get("who", "another job"))
        if not epoch or body.get("state") == "released":
            return Holder("free")
        first = first or (epoch, body)
        if first != (epoch, body):
            return Holder("held", who)
        if time.monotonic() - since > ttl:
            return Holder("silent", who, first)
        sleep(0.3)
