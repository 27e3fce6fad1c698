"""Where bytes lie: a small protocol, and local folders."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

# where callers of the first version find them
from vtx_scale.data_pipeline.lists import braces as braces
from vtx_scale.data_pipeline.lists import expand as expand
from vtx_scale.data_pipeline.publish import PART
from vtx_scale.data_pipeline.publish import whole as whole


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
            inside = path.relative_to(self.root)
            name = inside.as_posix()
            half = any(PART.match(part) for part in inside.parts)
            if path.is_file() and name.startswith(prefix) and not half:
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


def short_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]
