"""Where bytes lie: a small protocol, and local folders."""

import contextlib
import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

# where callers of the first version find them
from vtx_scale.data_pipeline import system
from vtx_scale.data_pipeline.lists import braces as braces
from vtx_scale.data_pipeline.lists import expand as expand
from vtx_scale.data_pipeline.publish import LOCK, PART, locked, remove_empty, sync, within
from vtx_scale.data_pipeline.publish import whole as whole

DIGESTED = 1 << 20  # bytes: the tag of a file up to this is of its content


@dataclass(frozen=True)
class Head:
    """Size in bytes, and a tag that changes with the content."""

    size: int
    tag: str


class Changed(OSError):
    """An object is another one than the one that was asked for."""


class NoBucket(FileNotFoundError):
    """There is no such bucket."""


class NoKeys(PermissionError):
    """There are no keys with which a bucket could be asked."""


class Object(Protocol):
    """An object that was opened: what is read of it is what it was then, also when its name goes
    away or names another one; a storage that cannot keep a large one raises `Changed`, or
    FileNotFoundError, in its place.

    To be closed, or used as a context. `size` in bytes; `tag` as `Head` has it.
    """

    size: int

    @property
    def tag(self) -> str:
        """Changes with the content."""

    def __len__(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes:
        """Exactly these bytes. Raises OSError where the object ends before or cannot be read."""

    def read_into(self, out: memoryview, offset: int) -> None:
        """Fill `out`, bytes, from byte `offset` on. Raises OSError as `read` does."""

    def close(self) -> None:
        """Let it go; a second time is no error."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class Storage(Protocol):
    """Objects by name, which may hold slashes.

    `put_if_absent` and `replace_if` are atomic; a reader never sees half an object. Where bytes
    cannot be read or written each raises an OSError.
    """

    def get_range(self, name: str, offset: int, length: int, tag: str | None = None) -> bytes:
        """`length` bytes from byte `offset` on, fewer where the object ends before.

        tag: of the object that is meant (see `Head`), any if None. Raises FileNotFoundError where
        there is no such object, `Changed` where it has another tag.
        """

    def open(self, name: str) -> Object:
        """An object, to be read in ranges.

        Raises FileNotFoundError where there is no such object, OSError where it cannot be opened.
        """

    def put(self, name: str, body: bytes) -> None:
        """Store an object whole, in place of one of that name."""

    def put_file(self, name: str, path: Path) -> None:
        """Store a local file whole, in place of an object of that name; the file is gone then, and
        the bytes are kept when this returns.
        """

    def scratch(self, name: str) -> AbstractContextManager[Path]:
        """A path of no file or of an empty one, from which `put_file` takes an object of this name
        at its cheapest; what is left there at the end is removed.
        """

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

    def __str__(self) -> str:
        return str(self.root)

    def get_range(self, name: str, offset: int, length: int, tag: str | None = None) -> bytes:
        """`length` bytes of a file from byte `offset` on, fewer where it ends before.

        Raises FileNotFoundError where there is no such file, `Changed` where it has another tag.
        """
        with File(self.root / name) as file:
            if tag is not None and file.tag != tag:
                raise Changed(errno.ESTALE, "the file is another by now", str(file.path))
            return file.read(offset, max(0, min(length, file.size - offset)))

    def open(self, name: str) -> "File":
        """A file through one descriptor. No link is followed: what is stored here is a file.

        Raises FileNotFoundError where there is no such file, OSError where it cannot be opened.
        """
        return File(self.root / name, links=False)

    def put(self, name: str, body: bytes) -> None:
        """Write a file whole; folders on the way are made."""
        with whole(self.root / name) as part:
            part.write_bytes(body)

    def put_file(self, name: str, path: Path) -> None:
        """Move a file here, with the mode that it has; on the disk when this returns."""
        target = self.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        sync(path)
        try:
            os.replace(path, target)
        except OSError as e:
            if e.errno != errno.EXDEV:
                raise
            with whole(target) as part:  # from another disk
                shutil.copyfile(path, part)
            path.unlink()
        sync(target.parent)

    @contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """`NAME.part` beside the place of a file, on the same disk; no empty folder stays.

        An empty file is there, so that nobody takes the folder for an empty one.
        """
        path = self.root / f"{name}.part"
        within(path.parent, path.touch)
        try:
            yield path
        finally:
            self.delete(f"{name}.part")

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

        Compared and written under a lock, which those take that call this; `put` and `delete` do
        not. On a file system without locks only the holder of an object may call it.
        """
        path = self.root / name
        if not path.parent.is_dir():
            return None
        with locked(path):
            head = self.head(name)
            if head is None or head.tag != tag:
                return None
            self.put(name, body)
            stored = self.head(name)
        return stored.tag if stored else None

    def list(self, prefix: str) -> Iterator[str]:
        """The names of files, in all folders below, that begin with `prefix`, in order."""
        names, met = [], set()  # met: folders, as a link may lead round in a circle
        top = self.root / prefix.rpartition("/")[0]
        for folder, folders, files in os.walk(top, followlinks=True):
            above = Path(folder)
            if (real := above.resolve()) in met:
                folders.clear()
                continue
            met.add(real)
            folders[:] = [name for name in folders if not PART.match(name)]
            inside = above.relative_to(self.root)
            plain = (x for x in files if not (PART.match(x) or LOCK.match(x)))
            names += [(inside / name).as_posix() for name in plain]
        yield from sorted(name for name in names if name.startswith(prefix))

    def head(self, name: str) -> Head | None:
        """Size and tag of a file, None where there is none.

        The tag is a digest of the content up to 1 MiB; above, and where it cannot be read, it is
        time, inode and size.
        """
        path = self.root / name
        try:
            status = path.stat()
            if stat.S_ISREG(status.st_mode) and status.st_size <= DIGESTED:
                with contextlib.suppress(PermissionError), File(path) as file:
                    return Head(file.size, file.tag)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Head(status.st_size, tag_of(status))

    def delete(self, name: str) -> None:
        """Remove a file, and the folders that are empty without it, as objects have none, or hold
        only what a dead writer left; one that is not there is no error.
        """
        path = self.root / name
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty, or gone
            while (path := path.parent) != self.root:
                remove_empty(path)


def tag_of(status: os.stat_result) -> str:
    """What changes when a file is written anew, also within one tick of the clock, as a file that
    is replaced keeps its inode until then.
    """
    return f"{status.st_mtime_ns:x}-{status.st_ino:x}-{status.st_size:x}"


class File:
    """A local file that is sliced like bytes, by positioned reads through a small window.

    Not a memory map: a file that is cut while it is mapped ends the process, a short read is an
    error one can catch.
    """

    WINDOW = 16 << 10

    def __init__(self, path: Path, links: bool = True) -> None:
        """links: whether a link is followed. Raises OSError where it cannot be opened."""
        self.path, self.fd = path, -1
        # a pipe would hold up whoever opens it
        alone = 0 if links else os.O_NOFOLLOW | os.O_NONBLOCK
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | alone)
        status = os.fstat(self.fd)
        if not (links or stat.S_ISREG(status.st_mode)):
            raise OSError(errno.EINVAL, "no plain file", str(path))
        self.size, self.mtime_ns, self._status = status.st_size, status.st_mtime_ns, status
        self._window, self._at = b"", 0

    @property
    def tag(self) -> str:
        """As `Folder.head` has it; read from the file each time where it is a digest."""
        if self.size > DIGESTED or not stat.S_ISREG(self._status.st_mode):
            return tag_of(self._status)
        return hashlib.sha256(self.read(0, self.size)).hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Let the descriptor go; a second time is no error."""
        fd, self.fd = getattr(self, "fd", -1), -1
        if fd >= 0:
            os.close(fd)

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

    def read_into(self, out: memoryview, offset: int) -> None:
        """Fill `out`, bytes, from byte `offset` on. Raises OSError where the file ends before."""
        while len(out):
            got = os.preadv(self.fd, [out], offset)
            if not got:
                raise OSError(f"{self.path} ends at byte {offset}")
            out, offset = out[got:], offset + got

    @property
    def deleted(self) -> bool:
        """Whether it has no name any more: its room on the disk is free when it is closed."""
        return os.fstat(self.fd).st_nlink == 0

    def forget(self, offset: int, length: int) -> None:
        """Let the next read of this range come from the disk and not from the page cache."""
        system.forget(self.fd, offset, length)


def short_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]
