"""Who reads from a node's cache: an empty file a process, locked as long as it lives, and one a run
for the process that fetches ahead.

Runs of one data set may read it in several orders. Each knows when it needs a chunk; of what
another needs it knows what that one's prefetcher has written in its file: the chunks in use.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

USER = re.compile(r"^([0-9a-f]{16})\.([0-9a-f]{16})\.([0-9]+)\.[0-9a-f]{16}$")
PREFETCHER = re.compile(r"^([0-9a-f]{16})\.([0-9a-f]{16})\.prefetcher$")


class User(NamedTuple):
    """A process that reads: which data set, in which order, what of which rank, and the step that
    it is at.
    """

    number: int
    order: int
    rank: int
    step: int


def order_key(
    fingerprint: str,
    batch: int,
    world: int,
    offset: int = 0,
    jumps: Mapping[int, int] | None = None,
) -> int:
    """64 bits that runs have in common of which a step needs the same chunks for the same rank.

    fingerprint: of the order. batch: slots of all ranks. offset, jumps: as `Batches` has them.
    """
    words = json.dumps([fingerprint, batch, world, offset, sorted((jumps or {}).items())])
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big")


class Users:
    """The readers of a cache as one process sees them, which may be one of them.

    folder: of their files. number: of the process's data set. order: `order_key`, 0 where samples
    come in no order that is known.
    """

    def __init__(self, folder: Path, number: int, order: int) -> None:
        self.folder, self.number, self.order = folder, number, order
        self._fd = -1

    def enter(self, rank: int, step: int) -> None:
        """Be seen by others, from now on until this process ends or `leave`s. The caller holds the
        lock of the book, else the file is taken for a dead one's before it is locked. Raises
        OSError.
        """
        if self._fd < 0:
            name = f"{self.number:016x}.{self.order:016x}.{rank}.{os.urandom(8).hex()}"
            flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
            self._fd = os.open(self.folder / name, flags, 0o666)
            self.at(step)  # before it counts
            fcntl.flock(self._fd, fcntl.LOCK_EX)

    @property
    def entered(self) -> bool:
        """Whether others see this process."""
        return self._fd >= 0

    def at(self, step: int) -> None:
        """Let others see at which step this process is: by the time of its empty file, which takes
        no room on the disk.
        """
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.utime(self._fd, (step, step))

    def leave(self) -> None:
        """This process reads the data set no more."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def lead(self) -> int:
        """A descriptor that makes this process its run's prefetcher as long as it is open; -1 where
        another one is. Raises OSError.
        """
        path = self.folder / f"{self.number:016x}.{self.order:016x}.prefetcher"
        fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), os.stat(path)):  # else it was swept away
                return fd
        os.close(fd)
        return -1

    def readers(self) -> list[tuple[int, int]]:
        """(rank, step) of the living readers of this data set in this order."""
        mine = self.number, self.order
        return [(u.rank, u.step) for u in self._living() if (u.number, u.order) == mine]

    def sets(self) -> NDArray[np.uint64]:
        """The numbers of the data sets that somebody reads."""
        return np.array([u.number for u in self._living()], np.uint64)

    def others(self) -> bool:
        """Whether somebody reads this data set in another order."""
        return any(u.number == self.number and u.order != self.order for u in self._living())

    def in_use(self) -> NDArray[np.int64]:
        """The chunks (n,) that runs of other orders have in use, as their prefetchers say."""
        found = [np.zeros(0, np.int64)]
        with contextlib.suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                name = PREFETCHER.match(entry.name)
                if name is None or int(name[1], 16) != self.number:
                    continue
                if int(name[2], 16) != self.order and alive(Path(entry.path)):
                    body = Path(entry.path).read_bytes()
                    found.append(np.frombuffer(body[: len(body) // 4 * 4], "<u4").astype(np.int64))
        return np.concatenate(found)

    def dead(self) -> list[Path]:
        """The files of processes that are no more."""
        with contextlib.suppress(OSError):
            paths = list(self.folder.iterdir())
            known = [p for p in paths if USER.match(p.name) or PREFETCHER.match(p.name)]
            return [path for path in known if not alive(path)]
        return []

    def _living(self) -> list[User]:
        found = []
        with contextlib.suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                name = USER.match(entry.name)
                if name is not None and alive(Path(entry.path)):
                    step = int(entry.stat().st_mtime)
                    found.append(User(int(name[1], 16), int(name[2], 16), int(name[3]), step))
        return found


def say_in_use(fd: int, chunks: NDArray[np.int64]) -> None:
    """Let runs of other orders see which chunks (n,) this one has in use; fd: of `Users.lead`.

    Raises OSError.
    """
    # 4 bytes a chunk, which the block covers that each chunk counts beyond its own
    body = chunks.astype("<u4").tobytes()
    os.pwrite(fd, body, 0)
    os.ftruncate(fd, len(body))


def alive(path: Path) -> bool:
    """Whether a process holds the lock of a file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return True  # no locks here: it may live
    finally:
        os.close(fd)
    return False
