"""Where bytes lie: a small protocol, local folders, and the shard lists that users write."""

import glob
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Protocol

from vtx_scale.data_pipeline.errors import UserError


@dataclass(frozen=True)
class Head:
    """Size in bytes, and a tag that changes with the content."""

    size: int
    tag: str


class Storage(Protocol):
    """Objects by name, which may hold slashes.

    `put_if_absent` and `replace_if` are atomic; a reader never sees half an object. Where bytes
    cannot be read or written each raises an OSError.
    """

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """`length` bytes from byte `offset` on, fewer where the object ends before.

        Raises FileNotFoundError where there is no such object.
        """

    def put(self, name: str, body: bytes) -> None:
        """Store an object whole, in place of one of that name."""

    def put_if_absent(self, name: str, body: bytes) -> bool:
        """Store an object where there is none of that name; whether it was stored."""

    def replace_if(self, name: str, body: bytes, tag: str) -> str | None:
        """Store an object in place of the one that has this tag (see `Head`); the new tag.

        None, and nothing is stored, where the object is gone or has another tag.
        """

    def list(self, prefix: str) -> Iterator[str]:
        """The names that begin with `prefix`, in order."""

    def head(self, name: str) -> Head | None:
        """Size and tag of an object, None where there is none."""

    def delete(self, name: str) -> None:
        """Remove an object; one that is not there is no error."""


@contextmanager
def whole(path: Path, publish: Callable[[Path, Path], None] = os.replace) -> Iterator[Path]:
    """A file beside `path` to write, which takes its place at the end, or is gone:
    nobody sees half of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # another host may have the same pid
    part = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}")
    try:
        yield part
        publish(part, path)
    finally:
        part.unlink(missing_ok=True)


class Folder:
    """A local folder as a `Storage`: a name is the path of a file below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """`length` bytes of a file from byte `offset` on, fewer where it ends before.

        Raises FileNotFoundError where there is no such file.
        """
        with (self.root / name).open("rb") as f:
            f.seek(offset)
            return f.read(length)

    def put(self, name: str, body: bytes) -> None:
        """Write a file whole; folders on the way are made."""
        with whole(self.root / name) as part:
            part.write_bytes(body)

    def put_if_absent(self, name: str, body: bytes) -> bool:
        """Write a file where there is none of that name; whether it was written."""
        try:
            # a link is exclusive on local disks and NFS
            with whole(self.root / name, os.link) as part:
                part.write_bytes(body)
        except FileExistsError:
            return False
        return True

    def replace_if(self, name: str, body: bytes, tag: str) -> str | None:
        """Write a file in place of the one that has this tag; the new tag, or None where it is gone
        or has another.

        Only the holder of an object may call it: a local replace compares, but does not lock.
        """
        head = self.head(name)
        if head is None or head.tag != tag:
            return None
        self.put(name, body)
        stored = self.head(name)
        return stored.tag if stored else None

    def list(self, prefix: str) -> Iterator[str]:
        """The names of files, in all folders below, that begin with `prefix`, in order."""
        for path in sorted(self.root.rglob("*")):
            name = path.relative_to(self.root).as_posix()
            if path.is_file() and name.startswith(prefix):
                yield name

    def head(self, name: str) -> Head | None:
        """Size and tag of a file, None where there is none; the tag is time and size."""
        try:
            stat = (self.root / name).stat()
        except FileNotFoundError:
            return None
        return Head(stat.st_size, f"{stat.st_mtime_ns:x}-{stat.st_size:x}")

    def delete(self, name: str) -> None:
        """Remove a file; one that is not there is no error."""
        (self.root / name).unlink(missing_ok=True)


class File:
    """A local file that is sliced like bytes, by positioned reads through a small window.

    Not a memory map: a file that is cut while it is mapped ends the process, a short read is an
    error one can catch.
    """

    WINDOW = 16 << 10

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        stat = os.fstat(self.fd)
        self.size, self.mtime_ns = stat.st_size, stat.st_mtime_ns
        self._window, self._at = b"", 0

    def __enter__(self) -> "File":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self.fd)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, part: slice) -> bytes:
        a, b, _ = part.indices(self.size)
        if b <= a:
            return b""
        if not self._at <= a <= b <= self._at + len(self._window):
            if b - a > self.WINDOW:
                return self.read(a, b - a)
            self._window, self._at = self.read(a, min(self.WINDOW, self.size - a)), a
        return self._window[a - self._at : b - self._at]

    def read(self, offset: int, length: int) -> bytes:
        """Exactly these bytes. Raises OSError where the file ends before."""
        body = os.pread(self.fd, length, offset)
        while len(body) < length:  # one call gives at most 2 GiB
            more = os.pread(self.fd, length - len(body), offset + len(body))
            if not more:
                raise OSError(
                    f"{self.path} ends at byte {offset + len(body)}, "
                    f"{length - len(body)} bytes too early"
                )
            body += more
        return body

    def forget(self, offset: int, length: int) -> None:
        """Let the next read of this range come from the disk and not from the page cache."""
        os.posix_fadvise(self.fd, offset, length, os.POSIX_FADV_DONTNEED)


NAMES_LIMIT = 1_000_000


def braces(pattern: str) -> list[str]:
    """Every name of a pattern such as `a-{000..012}.tar` or `{x,y}.tar`.

    Raises UserError beyond a million.
    """
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices: list[list[str] | range] = []
    widths = []
    for i, part in enumerate(parts):
        span = re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", part)
        if i % 2 and span:
            a, b = span.groups()
            widths.append(len(a) if a.startswith("0") or len(a) == len(b) else 0)
            choices.append(range(int(a), int(b) + 1))
        else:
            widths.append(0)
            choices.append(part.split(",") if i % 2 else [part])
    if prod(map(len, choices)) > NAMES_LIMIT:
        raise UserError(
            f"{pattern} means more than {NAMES_LIMIT:,} shards: look at the numbers in its braces."
        )
    return [
        "".join(x if isinstance(x, str) else f"{x:0{w}d}" for x, w in zip(row, widths, strict=True))
        for row in product(*choices)
    ]


def expand(shards: str) -> list[Path]:
    """The files that a user means by a folder (its *.tar), a brace pattern, a glob,
    or a comma list of these.

    Raises UserError, naming what is missing, where nothing or not everything is there.
    """
    found: list[Path] = []
    for part in re.split(r",(?![^{]*\})", shards):
        scheme = re.match(r"^([A-Za-z][A-Za-z0-9+.-]*):", part)
        if scheme and scheme[1].lower() == "s3":
            raise UserError(
                f"{part}: this version reads local shards; copy them to a folder and give that."
            )
        if scheme:
            raise UserError(
                f"{part}: {scheme[1]}: is never opened; give a local folder, "
                "pattern or list of tars."
            )
        if not part.strip() or "\0" in part or "\n" in part:
            raise UserError(
                f"{shards!r} has an empty or unprintable name of a shard: "
                "give a folder, pattern or list."
            )
        path = Path(part).expanduser()
        if path.is_dir():
            inside = sorted(p for p in path.glob("*.tar") if p.is_file())
            if not inside:
                packed = any(p.suffix == ".tgz" or ".tar." in p.name for p in path.iterdir())
                raise UserError(
                    f"{path} holds no "
                    f"*.tar{' but compressed ones: unpack them' if packed else ''}: give the "
                    "folder of the shards, or a pattern."
                )
            found += inside
        elif glob.has_magic(part) and "{" not in part:
            matched = sorted(Path(p) for p in glob.glob(str(path)) if os.path.isfile(p))
            if not matched:
                raise UserError(f"{part} matches no file: look at the path and the pattern.")
            found += matched
        else:
            names = braces(str(path))
            if not names:
                raise UserError(
                    f"{part} means no shard: the numbers in its braces run from the lower "
                    "to the higher."
                )
            for name in names:
                if not Path(name).is_file():
                    raise UserError(
                        f"{name} does not exist: give a folder, "
                        "pattern or list of shards that does."
                    )
                found.append(Path(name))
    found = [p.absolute() for p in found]
    doubled = [p for p, times in Counter(found).items() if times > 1]
    if doubled:
        raise UserError(f"{min(doubled)} is named twice: give each shard once.")
    return found


def short_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]
