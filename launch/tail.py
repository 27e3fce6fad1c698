"""What a run's file has grown by since it was read last, in a folder or in the segments that stand
for it in a bucket. Nothing is ever written. Standard library alone.

A resume cuts what it will write again: a file that no longer holds what was read right before the
place where reading goes on is another one, and is read again from its beginning.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from vtx_scale.data_pipeline.objects import AnyPath, ObjectPath, storage_of
from vtx_scale.trainer.segments import segments

PIECE = 1 << 24  # bytes that one request asks for at most
OVERLAP = 64  # bytes before that place which must still be there
AT_ONCE = 8  # segments that are asked for together
LOOK_EVERY = 5.0  # seconds between two looks at segments, each of which is a request


@dataclass
class Part:
    """A file or segment: how many of its bytes were read, and the last of them."""

    name: str
    offset: int = 0
    last: bytes = b""


class Cut(Exception):
    """A part is not what it was."""


class Tail:
    """The lines of what would be the file `path`, each given once."""

    def __init__(self, path: AnyPath) -> None:
        self.path, self.root = path, storage_of(path.parent)
        self.in_bucket = isinstance(path, ObjectPath)
        self.parts: dict[str, Part] = {}
        self.waiting: list[bytes] = []  # read, and not given yet: a later request failed
        self.again = False

    def read(self, again: bool = False) -> bool:
        """Read what is new, for `take`; whether what was given before is void. again: begin anew in
        any case.

        Raises OSError where it cannot be read; the next call goes on from where it was.
        """
        if again:
            self._reset()
        try:
            self._go_on()
        except Cut:
            self._reset()
            self._go_on()
        return self.again

    def take(self) -> tuple[bool, list[bytes]]:
        """(whether what was given before is void, the whole lines that were read since)."""
        lines, self.waiting = self.waiting, []
        void, self.again = self.again, False
        return void, lines

    def _reset(self) -> None:
        self.parts, self.waiting, self.again = {}, [], True

    def _go_on(self) -> None:
        """Raises Cut where a part has changed otherwise than by growing, OSError."""
        known = list(self.parts.values())
        if known:  # a cut takes the newest first
            self._take(known[-1], self._rest(known[-1]))
        new = [Part(name) for name in self._names() if name not in self.parts]
        if not new:
            return
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for part, body in zip(new, pool.map(self._rest, new), strict=True):
                self._take(part, body)

    def _names(self) -> Iterator[str]:
        """Of the parts there are, oldest first; in a folder that was read once, none are new but
        the file.
        """
        file = [self.path.name] if self.path.is_file() else []
        parts: list[str] = []
        if self.in_bucket or not self.parts:
            parts = [f"{self.path.stem}/{part.name}" for part in segments(self.path)]
        # what is not appended to here came with a copy, and is older
        return iter([*file, *parts] if self.in_bucket else [*parts, *file])

    def _rest(self, part: Part) -> bytes:
        """What is behind the offset. Raises Cut, OSError."""
        known, out = len(part.last), b""
        while True:
            start = part.offset - known + len(out)
            try:
                piece = self.root.get_range(part.name, start, PIECE)
            except FileNotFoundError:
                if part.offset:
                    raise Cut from None
                return b""
            out += piece
            if len(piece) < PIECE:
                break
        if out[:known] != part.last:
            raise Cut
        return out[known:]

    def _take(self, part: Part, body: bytes) -> None:
        whole, newline, _ = body.rpartition(b"\n")
        self.parts[part.name] = part
        if newline:
            part.offset += len(whole) + 1
            part.last = (part.last + whole + newline)[-OVERLAP:]
            self.waiting += whole.split(b"\n")


class Lines:
    """The lines of a text file such as log.txt as they come; segments are looked for every few
    seconds.
    """

    def __init__(self, path: AnyPath, whole: bool = False, every: float = LOOK_EVERY) -> None:
        """whole: from the first line on, else from those that come. every: seconds. Raises OSError
        where a bucket does not answer.
        """
        self.tail, self.next = Tail(path), 0.0
        self.every = every if self.tail.in_bucket else 0.0
        if not whole:
            self.tail.read()
            self.tail.take()

    def new(self) -> list[str]:
        """The lines that have come. Raises OSError where a bucket does not answer."""
        now = time.monotonic()
        if now < self.next:
            return []
        self.next = now + self.every
        self.tail.read()
        _, lines = self.tail.take()
        return [line.decode(errors="replace") for line in lines]
