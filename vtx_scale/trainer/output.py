"""The one place where a run writes for those who watch it: lines on stderr, and files that grow in
its folder.

What only informs never ends a training and never holds it up. What cannot be written is dropped
and counted by its place (`PLACES`), said once as soon as somebody can hear it, and stands in the
ledger as `dropped`. Standard library alone, so that a launcher has it without torch.
"""

import contextlib
import errno
import io
import json
import math
import os
import select
import stat
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtx_scale.data_pipeline.objects import AnyPath, ObjectPath
from vtx_scale.data_pipeline.storage import NoBucket, NoKeys
from vtx_scale.trainer.segments import SEGMENTS, sender

# everything that is written for watchers; the live line is drawn on stderr
PLACES = (
    "stderr",
    "log.txt",
    "metrics.jsonl",
    "evaluations.jsonl",
    "ledger.jsonl",
    "events.jsonl",
    "tensorboard",
    "profile",
    "log.to",
)
LINE_BYTES = 4000  # of a ledger line: what is up to a page is appended whole by one write
LAST = 20.0  # seconds at the end of a process for what waits to be sent
EAR = 0.2  # seconds that a line on stderr waits for a reader that is slow
NO_STDERR = "VTX_NO_STDERR"  # set where this process or its launcher was started without one


@dataclass
class State:
    """One place: how much was dropped since the start and since it last worked, and why."""

    dropped: int = 0
    now: int = 0
    reason: str = ""
    announced: bool = False


class Places:
    """What became of the writes of this process."""

    def __init__(self) -> None:
        self.states = {name: State() for name in PLACES}
        self.folder: AnyPath | None = None

    def attempt(self, name: str, write: Callable[[], None]) -> bool:
        """Write; whether it came through. Nothing is raised but requests to leave."""
        try:
            write()
        except Exception as e:  # a library's writer too
            self.failed(name, why(e), counted=isinstance(e, Counted))
            return False
        self.worked(name)
        return True

    def failed(self, name: str, reason: str, counted: bool = False) -> None:
        """counted: by `count` already."""
        if not counted:
            self.count(name, reason)
        self.announce(name)

    def count(self, name: str, reason: str) -> None:
        """One more that was dropped; nothing is said of it here."""
        state = self.states[name]
        state.dropped, state.now, state.reason = state.dropped + 1, state.now + 1, reason

    def announce(self, name: str) -> None:
        """That a place does not work, once in each outage, if anybody hears it."""
        state = self.states[name]
        remedy = "look at the sink" if name == "log.to" else "make room or mend the path"
        if not state.announced:
            state.announced = self.tell(
                f"{name} cannot be written ({state.reason}): what is meant for it is dropped and "
                f"counted, and the training goes on; {remedy}"
            )

    def worked(self, name: str) -> None:
        state = self.states[name]
        if state.now:
            lost, state.now, state.announced = state.now, 0, False
            self.tell(f"{name} can be written again: {lost} writes were dropped ({state.reason})")
            self.note(name, lost, state.reason)
        if name in ("stderr", "log.txt"):  # an ear: what nobody could hear until now
            for other, late in self.states.items():
                if late.now:
                    self.announce(other)

    def tell(self, line: str) -> bool:
        """To whoever hears: on stderr and in log.txt; whether one of them did."""
        heard = False
        with contextlib.suppress(Exception):
            on_stderr(f"{line}\n")
            heard = True
        if self.folder is not None:
            with contextlib.suppress(Exception):
                add(self.folder / "log.txt", stamped(line))
                heard = True
        return heard

    def note(self, name: str, count: int, reason: str) -> bool:
        """What was dropped, in the ledger."""
        entry = {"kind": "dropped", "place": name, "count": count, "reason": reason}
        entry["rank"] = int(os.environ.get("RANK", 0))
        if self.folder is None:
            return False
        try:
            for line in entry_lines(entry):
                add(self.folder / "ledger.jsonl", line)
        except Exception:
            return False
        return True

    def close(self) -> None:
        """At the end: what is still dropped is counted where it can be."""
        for name, state in self.states.items():
            if state.now:
                self.tell(f"{name}: {state.now} writes were dropped ({state.reason})")
                self.note(name, state.now, state.reason)
                state.now, state.announced = 0, False


class Counted(OSError):
    """A write that failed further down, where it was counted."""


PLACE = Places()


def why(e: Exception) -> str:
    """One line: which file, and what the system says of it."""
    if isinstance(e, OSError) and e.strerror:
        return f"{e.filename}: {e.strerror}" if e.filename else e.strerror
    if isinstance(e, OSError) and str(e):  # our own sentence
        return str(e)
    return f"{type(e).__name__}: {e}".splitlines()[0][:200]


ADVICE = {
    errno.ENOSPC: "make room there and run the same command again",
    errno.EDQUOT: "the quota is used up: make room there and run the same command again",
    errno.EROFS: "give a folder that can be written",
    errno.EACCES: "give a folder that you may use, or have its mode changed",
    errno.EPERM: "give a folder that you may use, or have its mode changed",
    errno.EMFILE: "raise the limit of open files ('ulimit -n')",
    errno.ENAMETOOLONG: "give a shorter name",
}


AT_BUCKET = {
    errno.ENOENT: "look at the names of bucket and object",
    errno.EACCES: "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, of who may",
    errno.EIO: "look at the server and at AWS_ENDPOINT_URL_S3, then run the same command again",
}


def sentence(e: OSError) -> str:
    """What the system refused, of which file, and what to do."""
    remote = str(e.filename or "").startswith("s3://")
    advice = (AT_BUCKET if remote else ADVICE).get(e.errno or 0)
    return f"{why(e)}: {advice}." if advice else why(e)


def code_of(e: OSError) -> int:
    """The exit code where nothing has begun: 2, wrong input, for a bucket that is not there or for
    which there are no keys, else 1.
    """
    return 2 if isinstance(e, NoBucket | NoKeys) else 1


def say(line: str) -> None:
    """A line for people, on stderr."""
    PLACE.attempt("stderr", lambda: on_stderr(f"{line}\n"))


def silent(line: str) -> None:
    """For callers whose user has heard it already."""


def on_stderr(text: str) -> None:
    """Write now or not at all: a pipe that nobody reads and a stopped terminal hold nobody up.

    Raises OSError where it cannot be written.
    """
    stream = sys.stderr
    if stream is not None and stream is not sys.__stderr__ and not isinstance(stream, Stderr):
        state = PLACE.states["stderr"]
        before = state.dropped
        stream.write(text)  # the live line's, which draws itself anew below; a notebook's
        stream.flush()
        if state.dropped > before:
            raise Counted(errno.EIO, state.reason)
        return
    to_descriptor(text)


def to_descriptor(text: str) -> None:
    """To descriptor 2. Raises OSError."""
    if os.environ.get(NO_STDERR):
        raise OSError(errno.EBADF, "closed at the start", "stderr")
    coding = getattr(sys.__stderr__, "encoding", None) or "utf-8"
    rest = text.encode(coding, "backslashreplace")
    ready = select.poll()
    ready.register(2, select.POLLOUT)
    slow = EAR if not PLACE.states["stderr"].now else 0.0
    while rest:
        events = ready.poll(slow * 1000)
        if not events:
            raise OSError(errno.EAGAIN, "nobody reads it", "stderr")
        # a pipe that is ready takes so much at once
        rest = rest[write_some(2, rest[: select.PIPE_BUF], "stderr") :]


def write_some(fd: int, data: bytes, name: str) -> int:
    """Raises OSError with the name in it."""
    try:
        return os.write(fd, data)
    except OSError as e:
        raise OSError(e.errno, e.strerror, name) from None


class Stderr(io.TextIOBase):
    """`sys.stderr` of a training, for warnings, tracebacks and the live line.

    What cannot be written is dropped and counted, and the next `say` tells of it. Nothing is said
    from here: a thread that draws the live line holds its locks.
    """

    encoding = "utf-8"

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 2

    def isatty(self) -> bool:
        return not os.environ.get(NO_STDERR) and os.isatty(2)

    def write(self, text: str) -> int:
        try:
            to_descriptor(text)
        except Exception as e:
            PLACE.count("stderr", why(e))
        return len(text)


@contextlib.contextmanager
def guarded_stderr() -> Iterator[None]:
    """Inside, nothing that Python writes to stderr can end or hold up this process."""
    before = sys.stderr
    if before is None or before is sys.__stderr__:
        sys.stderr = Stderr()
    try:
        yield
    finally:
        sys.stderr = before


def open_missing_descriptors() -> None:
    """Started with 0, 1 or 2 closed: the next file that is opened would get that number, and what
    a library prints would go into a checkpoint.
    """
    if sys.stderr is None:
        os.environ[NO_STDERR] = "1"
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number
            os.set_inheritable(fd, True)


def append(path: AnyPath, line: bytes) -> None:
    """Add one line to a file of `PLACES`, ended here, by one write:
    ranks and launcher may share the file.
    """
    PLACE.folder = path.parent
    PLACE.attempt(path.name, lambda: add(path, line))


def add(path: AnyPath, line: bytes) -> None:
    """`append` that raises OSError. A line that a full disk has torn stays a line of its own.

    Of a run that lies in a bucket it is sent later, in a segment.
    """
    if isinstance(path, ObjectPath):
        SEGMENTS.add(path, line + b"\n", sender(path))
    elif isinstance(path, Path):
        add_to_file(path, line)


def add_to_file(path: Path, line: bytes) -> None:
    """The same of a local file."""
    with descriptor(path) as fd:
        body = b"\n" * is_torn(fd) + line + b"\n"
        if write_some(fd, body, str(path)) < len(body):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def add_bytes(path: Path, body: bytes) -> None:
    """Add bytes to a file. Raises OSError where not all of them came there."""
    with descriptor(path) as fd:
        if write_some(fd, body, str(path)) < len(body):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


@contextlib.contextmanager
def descriptor(path: Path) -> Iterator[int]:
    """Open to append; a pipe that lies there holds nobody up."""
    flags = os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(path, flags | os.O_RDWR, 0o666)  # read too, for the last byte
    if stat.S_ISFIFO(os.fstat(fd).st_mode):  # of which this process would be its own reader
        os.close(fd)
        fd = os.open(path, flags | os.O_WRONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def is_torn(fd: int) -> bool:
    """Whether the file ends within a line, and not because another rank writes it just now."""
    before = -1
    while True:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode) or not about.st_size:
            return False
        if os.pread(fd, 1, about.st_size - 1) == b"\n":
            return False
        if about.st_size == before:
            return True
        before = about.st_size
        time.sleep(0.005)


def stamped(line: str) -> bytes:
    return f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}".encode("utf-8", "backslashreplace")


def append_text(folder: AnyPath, line: str) -> None:
    """A line of log.txt, with the time."""
    append(folder / "log.txt", stamped(line))


def json_line(entry: dict[str, Any]) -> bytes:
    """One object as strict JSON: what is no finite number is null."""
    return json.dumps(
        plain(entry), separators=(",", ":"), default=scalar_or_text, allow_nan=False
    ).encode()


def plain(value: Any) -> Any:
    """The same without numbers that JSON has not."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def scalar_or_text(value: Any) -> Any:
    """Of a type that JSON has not: a number of another library, else its text."""
    item = getattr(value, "item", None)
    return plain(item()) if callable(item) else str(value)


def entry_lines(entry: dict[str, Any]) -> list[bytes]:
    """A ledger entry as lines of at most LINE_BYTES: a long list goes to several, which are
    numbered by `part` of `parts`; a long text is cut.
    """
    line = json_line(entry)
    if len(line) <= LINE_BYTES:
        return [line]
    lists = [k for k, v in entry.items() if isinstance(v, list | tuple) and len(v) > 1]
    if lists:
        name = max(lists, key=lambda k: len(json_line({k: entry[k]})))
        parts = halves(entry, name)
        numbered = [{**p, "part": i + 1, "parts": len(parts)} for i, p in enumerate(parts)]
        return [row for p in numbered for row in entry_lines(p)]
    name = max(entry, key=lambda k: len(json_line({k: entry[k]})))
    text = str(entry[name])
    return entry_lines({**entry, name: text[: min(len(text) // 2, 1000)] + "..."})


def halves(entry: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The entry with its list `name` in pieces, each of which fits a line, or is single."""
    values = list(entry[name])
    room = LINE_BYTES - 40  # for the two numbers
    if len(values) == 1 or len(json_line(entry)) <= room:
        return [entry]
    middle = len(values) // 2
    first, second = values[:middle], values[middle:]
    return [*halves({**entry, name: first}, name), *halves({**entry, name: second}, name)]


class Ledger:
    """`ledger.jsonl`: an object for everything masked, skipped, retried, repaired.

    Every rank appends.
    """

    def __init__(self, folder: AnyPath) -> None:
        self.path = folder / "ledger.jsonl"

    def write(self, **entry: Any) -> None:
        for line in entry_lines(entry):
            append(self.path, line)


def send(patience: float) -> bool:
    """Send what waits to be sent; whether all of it is there within so many seconds."""
    return SEGMENTS.flush(patience)


def send_rest(patience: float = LAST) -> None:
    """At the end of a process, and before what was written is read again: send what waits; what
    cannot be sent within so many seconds is dropped and counted.
    """
    if send(patience):
        return
    for name, (count, reason) in SEGMENTS.drop().items():
        place = next((p for p in PLACES if name.endswith(p)), "tensorboard")
        for _ in range(count):
            PLACE.count(place, reason or "no answer")
        PLACE.announce(place)
