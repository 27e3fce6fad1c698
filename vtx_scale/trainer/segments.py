"""What grows in a run's folder where nothing can be appended: numbered objects.

    metrics/00000001.jsonl  ledger/00003-00000001.jsonl  log/00000-00000001.txt
    tensorboard/events.out.tfevents.*  evaluations.jsonl (one object)

Lines wait here until a thread of their own has sent them, so that a bucket that does not answer
holds no step up: half a minute, or until there is a mebibyte, or a save asks for them. What cannot
be sent is tried again, as it was and under its name, since it may be there and its answer lost;
beyond `ROOM` lines are refused, and are dropped and counted by whoever brought them. Before each
sending the lease is asked for: a job that was suspended past it adds nothing behind another's
lines.
Standard library alone.
"""

import contextlib
import errno
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from vtx_scale.data_pipeline.objects import AnyPath, ObjectPath

EVERY = 30.0  # seconds that a line waits at most
MOST = 1 << 20  # bytes of a segment, about
ROOM = 8 << 20  # bytes of one kind that wait at most
AGAIN = 5.0  # seconds after a failure
SEGMENT = re.compile(r"(\d{5}-)?(\d{8})\.[a-z]+")
ALONE = ("metrics.jsonl",)  # what rank 0 alone writes


class Numbered:
    """`NAME/RANK-00000001.jsonl` and so on: each body an object of its own, never one that is
    there.
    """

    def __init__(self, path: ObjectPath) -> None:
        """path: what the file would be named in a local folder."""
        self.root = path.root
        rank = "" if path.name in ALONE else f"{int(os.environ.get('RANK', 0)):05d}-"
        self.prefix = f"{(path.parent / path.stem).key}/{rank}"
        self.suffix = path.name.removeprefix(path.stem)
        self.number = 0
        self.tried: bytes | None = None  # perhaps stored under the number

    def __call__(self, body: bytes) -> None:
        """Raises OSError where it cannot be stored, or is and nobody says so: the same body again
        is then stored once.
        """
        again = body == self.tried
        while True:
            if not again:
                if not self.number:
                    self.number = self._newest()
                self.number += 1
            name = f"{self.prefix}{self.number:08d}{self.suffix}"
            self.tried = body
            if self.root.put_if_absent(name, body) or (again and self._holds(name, body)):
                self.tried = None
                return
            again, self.number = False, 0  # another process writes here too

    def _holds(self, name: str, body: bytes) -> bool:
        try:
            with self.root.open(name) as file:
                return file.size == len(body) and file.read(0, file.size) == body
        except FileNotFoundError:
            return False

    def _newest(self) -> int:
        numbers = [n.removeprefix(self.prefix)[:8] for n in self.root.list(self.prefix)]
        return max((int(n) for n in numbers if n.isdigit()), default=0)


class One:
    """One object that is written anew, longer by each body."""

    def __init__(self, path: ObjectPath) -> None:
        self.root, self.name = path.root, path.key
        self.tried: bytes | None = None  # perhaps stored behind so many bytes
        self.behind = 0

    def __call__(self, body: bytes) -> None:
        """Raises OSError where it cannot be stored, or is and nobody says so: the same body again
        is then stored once.
        """
        again = body == self.tried
        while True:
            there, tag = b"", ""
            with contextlib.suppress(FileNotFoundError), self.root.open(self.name) as file:
                there, tag = file.read(0, file.size), file.tag
            if again and body in there[self.behind :]:
                break
            if not again:
                self.tried, self.behind = body, len(there)
            if not tag and self.root.put_if_absent(self.name, body):
                break
            if tag and self.root.replace_if(self.name, there + body, tag) is not None:
                break
        self.tried = None


@dataclass
class Waiting:
    """What waits to be sent to one place, in order."""

    send: Callable[[bytes], None]
    pieces: list[bytes] = field(default_factory=list)
    size: int = 0  # bytes
    since: float = 0.0  # that the first has waited
    reason: str = ""  # why the last try failed
    stored: int = 0  # pieces so far
    wanted: int = 0  # of them, by who asked for a flush
    tried: int = 0  # pieces that were sent without an answer, and perhaps are there
    lost: str = ""  # why nothing is sent any more: who has the lease

    def due(self, now: float) -> bool:
        """Whether it is to be sent now; after a failure there is a pause."""
        full = self.size >= MOST or self.stored < self.wanted
        late = self.since + (AGAIN if self.reason else EVERY)
        return bool(self.pieces) and not self.lost and (now >= late or (full and not self.reason))


class Segments:
    """All that waits in this process. A thread sends it, from the first piece on."""

    def __init__(self) -> None:
        self._guards: dict[str, Callable[[], str]] = {}
        self.reset()

    def reset(self) -> None:
        """Nothing waits, as in a process that was forked off."""
        self._places: dict[str, Waiting] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def guard(self, folder: str, lost: Callable[[], str]) -> None:
        """From now on send what lies in a folder only where `lost` says nothing. It is asked before
        each sending; what it says is why nothing is sent any more, and OSError is asked again.
        """
        with self._changed:
            self._guards[folder] = lost
            old = [n for n, place in self._places.items() if place.lost and in_(n, folder)]
            for name in old:
                del self._places[name]

    def add(self, path: ObjectPath, piece: bytes, send: Callable[[bytes], None]) -> None:
        """Bytes for a place; send: how a body of it is stored, used where the place is new.

        Raises OSError where too much waits already, and where another job has the lease.
        """
        with self._changed:
            place = self._places.setdefault(str(path), Waiting(send))
            if place.lost:
                raise OSError(errno.ESTALE, place.lost, str(path))
            if place.size + len(piece) > ROOM:
                raise OSError(errno.EIO, place.reason or "too much waits to be sent", str(path))
            if not place.pieces:
                place.since = time.monotonic()
            place.pieces.append(piece)
            place.size += len(piece)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.start()
            if place.size >= MOST or len(place.pieces) == 1:
                self._changed.notify_all()

    def flush(self, patience: float) -> bool:
        """Send what waits now; whether it is stored, within so many seconds. One that may not be
        sent is not waited for.
        """
        until = time.monotonic() + patience
        with self._changed:
            for place in self._places.values():
                place.wanted, place.reason = place.stored + len(place.pieces), ""
            asked = [(place, place.wanted) for place in self._places.values()]
            self._changed.notify_all()
            while any(place.stored < count for place, count in asked):
                left = until - time.monotonic()
                lost = any(place.lost for place, count in asked if place.stored < count)
                if left <= 0 or lost:
                    return False
                self._changed.wait(left)
        return True

    def drop(self) -> dict[str, tuple[int, str]]:
        """Give up what still waits: name of its place -> how many pieces, and why."""
        with self._changed:
            left = {
                name: (len(p.pieces), p.lost or p.reason)
                for name, p in self._places.items()
                if p.pieces
            }
            self._places = {}
        return left

    def _run(self) -> None:
        while True:
            with self._changed:
                while (due := self._due()) is None:
                    self._changed.wait(self._pause())
                name, place = due
                pieces = place.pieces[: place.tried or None]
            reason = lost = ""
            try:
                lost = self._lost(name)
                if not lost:
                    place.tried = len(pieces)
                    place.send(b"".join(pieces))
            except Exception as e:  # it is tried again
                reason = (e.strerror if isinstance(e, OSError) else None) or type(e).__name__
            with self._changed:
                place.reason, place.since, place.lost = reason, time.monotonic(), lost
                if not reason and not lost:
                    place.tried = 0
                    del place.pieces[: len(pieces)]
                    place.size -= sum(map(len, pieces))
                    place.stored += len(pieces)
                self._changed.notify_all()

    def _lost(self, name: str) -> str:
        """Why a place must not be written to. Raises OSError where that cannot be known."""
        guards = [lost for folder, lost in self._guards.items() if in_(name, folder)]
        return next((why for lost in guards if (why := lost())), "")

    def _due(self) -> tuple[str, Waiting] | None:
        now = time.monotonic()
        return next((item for item in self._places.items() if item[1].due(now)), None)

    def _pause(self) -> float | None:
        """Seconds until a place is late; None where nothing waits."""
        now = time.monotonic()
        waiting = [p for p in self._places.values() if p.pieces and not p.lost]
        late = [p.since + (AGAIN if p.reason else EVERY) for p in waiting]
        return max(0.0, min(late) - now) if late else None


def in_(name: str, folder: str) -> bool:
    """Whether a path lies in a folder."""
    return name.startswith(f"{folder}/")


SEGMENTS = Segments()
os.register_at_fork(after_in_child=SEGMENTS.reset)


def segments(path: AnyPath) -> list[AnyPath]:
    """The numbered objects, or files in a copy of them, of what would be `path`: in order."""
    folder = path.parent / path.stem
    if not folder.is_dir():
        return []
    found = [part for part in folder.iterdir() if SEGMENT.fullmatch(part.name)]
    return sorted(found, key=lambda part: part.name)


def sender(path: ObjectPath) -> Callable[[bytes], None]:
    """How what would be the file `path` is stored."""
    return One(path) if path.name == "evaluations.jsonl" else Numbered(path)
