"""Chunks on the disk of a node, shared by its processes: a file each, never above a limit.

The book (book.py), a table under one lock, counts a chunk before its bytes are written, and for as
long as its file is there. So the files are within the limit at every instant, whoever is killed:
what is counted nowhere is removed, what is counted and absent is released. A file is written as
`.part`, under a lock that its writer holds as long as it lives, and renamed. What is deleted while
it is open stays readable: open, then read.
"""

import contextlib
import errno
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vtx_scale.data_pipeline.book import BLOCK, Table, cost, each_cost
from vtx_scale.data_pipeline.publish import HELD
from vtx_scale.data_pipeline.storage import File
from vtx_scale.data_pipeline.system import reserve
from vtx_scale.data_pipeline.users import Users, alive

MARK = ".vtx-cache"  # a folder without this file is not ours: nothing is written or removed there
BOOK, USERS = "book", "users"
NAME = re.compile(r"^([0-9a-f]{16})-([0-9]{8,19})(\.part)?$")
SPARE = 16 * BLOCK  # of the limit: the folders, the mark, and the book's last block
PATIENCE = 120.0  # seconds that a reader waits for another process to write a chunk
BUSY, CROWDED = -1, -2  # no part: another process has the chunk; something has to make room
AGAIN = 30.0  # seconds after which a disk that was full is tried again
SWEPT = 300.0  # seconds between looks of a node at all files of a full cache
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Uses = Callable[[NDArray[np.int64]], NDArray[np.float64]]  # chunks -> when each is needed next


@dataclass(frozen=True)
class Judged:
    """When the chunks of a data set are needed next, as they were when somebody looked."""

    chunks: NDArray[np.int64]  # (n,), ascending
    when: NDArray[np.float64]  # (n,)

    def __call__(self, chunks: NDArray[np.int64]) -> NDArray[np.float64]:
        """Of each chunk (m,); what has come since then is needed."""
        if not len(self.chunks):
            return never(chunks)
        i = np.minimum(np.searchsorted(self.chunks, chunks), len(self.chunks) - 1)
        return np.where(self.chunks[i] == chunks, self.when[i], -np.inf)

    def knows(self, chunks: NDArray[np.int64]) -> bool:
        """Whether none of these chunks (m,) has come since then."""
        return bool(np.isin(chunks, self.chunks).all())


def never(chunks: NDArray[np.int64]) -> NDArray[np.float64]:
    """Nothing of a data set may go: where no order says what is needed next."""
    return np.full(len(chunks), -np.inf)


def dead(chunks: NDArray[np.int64]) -> NDArray[np.float64]:
    """All of a data set may go."""
    return np.full(len(chunks), np.inf)


class NodeCache:
    """The chunks of one data set in a folder that may hold those of others too.

    folder: made, and marked as ours, where there is none or an empty one. limit: bytes on its disk,
    of all data sets together. digest: `Index.digest`. share: bytes of this data set, where it is
    one of several that a run reads. order: in which it is read, an `order_key`. Picklable; every
    process counts in the book of the folder.
    """

    def __init__(
        self, folder: Path, limit: int, digest: bytes, share: int | None = None, order: int = 0
    ) -> None:
        self.folder, self.limit = folder, limit
        self.share = limit if share is None else share
        self.number = int.from_bytes(digest[:8], "big")
        self.fault = ""  # why nothing more is written, a sentence
        self._ceiling, self._until = limit, 0.0  # of a disk that is full below the limit
        self.users = Users(folder / USERS, self.number, order)

    def __del__(self) -> None:
        self.leave()

    def __getstate__(self) -> dict[str, Any]:
        mine = {k: getattr(self, k) for k in ("folder", "limit", "number", "share")}
        return {**mine, "order": self.users.order}

    def __setstate__(self, state: dict[str, Any]) -> None:
        digest = state["number"].to_bytes(8)
        words = state["folder"], state["limit"], digest, state["share"], state["order"]
        NodeCache.__init__(self, *words)

    def path(self, k: int) -> Path:
        """The file of a chunk."""
        return self._path(self.number, k)

    def _path(self, number: int, k: int) -> Path:
        return self.folder / f"{number:016x}-{k:08d}"

    def prepare(self) -> str:
        """Make the folder ours, and remove what dead processes left; "" or, a sentence, why it
        cannot be used.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not self._ours():
                if os.listdir(self.folder) and not self._ours():
                    return (
                        f"{self.folder} holds other files and is no cache: "
                        "give system.cache.folder an empty folder, or one that is not there yet."
                    )
                (self.folder / MARK).touch()
            (self.folder / USERS).mkdir(exist_ok=True)
            with self._book() as table:
                self._sweep(table)
        except OSError as e:
            return f"{self.folder} cannot be used as a cache ({e.strerror or e})."
        return ""

    def shrink(self) -> None:
        """Bring what lies there within the limit, which may have been another one before: chunks go
        of data sets that nobody reads.
        """
        with contextlib.suppress(OSError), self._book() as table:
            over = table.used - (self.limit - SPARE)
            if over > 0:
                when = never if self.number in self.users.sets() else dead
                self._make_room(table, over, when, np.inf)

    def _ours(self) -> bool:
        return (self.folder / MARK).is_file()

    @contextmanager
    def _book(self) -> Iterator[Table]:
        """The table, under its lock. Raises OSError where it cannot be had."""
        fd = self._hold()
        try:
            yield Table(fd)
        finally:
            os.close(fd)

    def _hold(self) -> int:
        """A descriptor that holds the lock of the book that others find by its name."""
        deadline = time.monotonic() + HELD
        if not self._ours():
            raise FileNotFoundError(errno.ENOENT, "is no cache any more", str(self.folder))
        while True:
            fd = os.open(self.folder / BOOK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(fd), os.stat(self.folder / BOOK)):
                    return fd
            except (BlockingIOError, FileNotFoundError):
                pass
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)
            if time.monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, "another process holds it", str(self.folder))
            time.sleep(0.001)

    def used(self) -> int:
        """Bytes that are counted now, of all data sets."""
        with self._book() as table:
            return table.used

    def open(self, k: int, length: int) -> File | None:
        """The file of a chunk, None where it is not there; its CRC is the caller's to check."""
        try:
            file = File(self.path(k), links=False)
        except OSError:
            return None
        if file.size == length:
            return file
        self.drop(k, file)
        return None

    def drop(self, k: int, file: File) -> None:
        """Remove a file that is not what was written: the disk lost its bytes."""
        with contextlib.suppress(OSError), self._book() as table:
            if os.path.samestat(os.fstat(file.fd), os.stat(self.path(k))):
                self._remove(table, table.find(self.number, k), self.path(k))
        file.close()

    def get(
        self,
        k: int,
        length: int,
        fetch: Callable[[], bytes],
        uses: Uses = never,
        before: float = np.inf,
    ) -> File | None:
        """The file of a chunk, written where it is not there; None where there is no room for it.

        fetch: its bytes, whose CRC is right. uses: when chunks of this data set are needed next.
        before: when this one is; only what is needed later makes room for it. Raises what `fetch`
        raises, and nothing for what the disk refuses.
        """
        deadline, judged = time.monotonic() + PATIENCE, None
        while time.monotonic() < deadline:
            if (file := self.open(k, length)) is not None:
                return file
            try:
                part = self._reserve(k, length, judged, before)
                if part == CROWDED:
                    judged = self._judge(uses)
                    continue
            except OSError as e:
                self._refused(e)
                return None
            if part is None:
                return None
            if part >= 0:
                return self._write(k, part, length, fetch)
            self._wait(k, deadline)
            judged = None
        return None

    def _judge(self, uses: Uses) -> Judged:
        """What is needed when, of all that is counted of this data set. The lock is not held
        meanwhile: an epoch of a large index takes seconds, for which other processes would wait.
        """
        with self._book() as table:
            chunks = np.sort(table.chunks_of(self.number))
        when = uses(chunks).astype(np.float64)
        # what another run has in use it would fetch again at once
        when[np.isin(chunks, self.users.in_use())] = -np.inf
        return Judged(chunks, when)

    def _refused(self, e: OSError, counted: int = 0) -> None:
        """The disk does not take it: what there is is still read. counted: of what it refused."""
        if e.errno in FULL:
            self._until = time.monotonic() + AGAIN
            with contextlib.suppress(OSError):
                self._ceiling = self.used() - counted
        self.fault = f"{self.folder} takes no more chunks ({e.strerror or e})."

    def _reserve(self, k: int, length: int, uses: Judged | None, before: float) -> int | None:
        """The descriptor of a part to write, whose bytes are counted; BUSY where another process
        writes this chunk or has just done so; None where there is no room; CROWDED where something
        has to make room and it is not known of all chunks when they are needed.
        """
        path = self.path(k)
        part = part_of(path)
        if time.monotonic() > self._until:
            self._ceiling = self.limit
        room = min(self.limit - SPARE, self._ceiling)
        with self._book() as table:
            if not len(table.rows):
                self._sweep(table)  # a book that is lost counts nothing
            if (at := table.find(self.number, k)) >= 0:
                # in this order: a part that is no more may have been renamed just now
                if alive(part) or path.exists():
                    return BUSY
                self._remove(table, at, part)
            else:
                path.unlink(missing_ok=True)  # counted nowhere
                part.unlink(missing_ok=True)
            need = cost(length)
            if table.used + need > room and self._sweep_is_due():
                self._sweep(table)
            over = table.used + need - room
            own = table.used_by(self.number) + need - self.share
            if max(over, own) > 0 and uses is None:
                return CROWDED
            if over > 0 and uses is not None:
                self._make_room(table, over, uses, before)
                own = table.used_by(self.number) + need - self.share
            if own > 0 and uses is not None:
                self._make_room(table, own, uses, before, own=True)
            if max(table.used - room, table.used_by(self.number) - self.share) + need > 0:
                known = uses is None or uses.knows(table.chunks_of(self.number))
                return None if known else CROWDED
            at = table.put(self.number, k, length)
            try:
                fd = os.open(part, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666)
            except OSError:
                table.free(at)
                raise
            fcntl.flock(fd, fcntl.LOCK_EX)  # who looks whether it is held lets go at once
            return fd

    def _write(self, k: int, fd: int, length: int, fetch: Callable[[], bytes]) -> File | None:
        """Fill the part and rename it. The part stays locked until then."""
        path = self.path(k)
        part = part_of(path)
        done = False
        try:
            try:
                reserve(fd, length)  # a full disk says so before anything is fetched
            except OSError as e:
                if e.errno in FULL:
                    self._refused(e, cost(length))
                    return None
            body = memoryview(fetch())
            assert len(body) == length, "a chunk of another length"
            try:
                at = 0
                while at < length:
                    at += os.pwrite(fd, body[at:], at)
                os.rename(part, path)
                done = True
            except OSError as e:
                self._refused(e, cost(length))
                return None
            return self.open(k, length)
        finally:
            if not done:
                with contextlib.suppress(OSError), self._book() as table:
                    self._remove(table, table.find(self.number, k), part)
            os.close(fd)

    def _wait(self, k: int, deadline: float) -> None:
        """Until whoever writes a chunk has done so, or is dead."""
        while time.monotonic() < deadline and alive(part_of(self.path(k))):
            time.sleep(0.002)

    def _remove(self, table: Table, at: int, path: Path) -> None:
        """Remove a file, and count it no more."""
        path.unlink(missing_ok=True)
        if at >= 0:
            table.free(at)

    def _make_room(
        self, table: Table, need: int, uses: Uses, before: float, own: bool = False
    ) -> None:
        """Remove what is needed no more, then what is needed last, but nothing if all that may go
        is too little. own: of this data set alone.
        """
        taken = np.flatnonzero(table.rows["bytes"] > 0)
        rows = table.rows[taken]
        mine = rows["set"] == self.number
        when = np.empty(len(rows))
        when[mine] = uses(rows["chunk"][mine].astype(np.int64))
        # of a data set that nobody reads all may go; others are their readers' to judge
        read = np.isin(rows["set"][~mine], self.users.sets())
        when[~mine] = np.where(read, -np.inf, np.inf)
        order = np.argsort(-when, kind="stable")
        order = order[(when[order] > before) | (when[order] == np.inf)]
        order = order[mine[order]] if own else order
        costs = each_cost(rows["bytes"][order])
        if costs.sum() < need:
            return
        for i, freed in zip(order.tolist(), costs.tolist(), strict=True):
            if need <= 0:
                break
            path = self._path(int(rows["set"][i]), int(rows["chunk"][i]))
            if not alive(part := part_of(path)):  # else it is being written
                part.unlink(missing_ok=True)
                self._remove(table, int(taken[i]), path)
                need -= freed

    def _sweep_is_due(self) -> bool:
        """Whether no process of this node has swept for minutes: the time of the mark says it."""
        return abs(time.time() - (self.folder / MARK).stat().st_mtime) > SWEPT

    def _sweep(self, table: Table) -> None:
        """Remove what is counted nowhere, and release what is counted and absent: one look at the
        folder, since others wait for the lock.
        """
        taken = np.flatnonzero(table.rows["bytes"] > 0)
        rows = [table.rows[name][taken].tolist() for name in ("set", "chunk", "bytes")]
        counted = {
            (number, k): (at, length)
            for number, k, length, at in zip(*rows, taken.tolist(), strict=True)
        }
        there = set()
        for entry in os.scandir(self.folder):
            found = NAME.match(entry.name)
            if found is None or not entry.is_file(follow_symlinks=False):
                continue
            chunk = int(found[1], 16), int(found[2])
            at, length = counted.get(chunk, (-1, -1))
            if found[3]:
                keep = at >= 0 and alive(Path(entry.path))
            else:
                keep = at >= 0 and size_of(entry.path) == length
            if keep:
                there.add(chunk)
            else:
                Path(entry.path).unlink(missing_ok=True)
        for chunk in counted.keys() - there:
            # a part that was renamed since is no longer among the names that were listed
            if not self._path(*chunk).exists():
                table.free(counted[chunk][0])
        for path in self.users.dead():
            path.unlink(missing_ok=True)
        os.utime(self.folder / MARK)

    def enter(self, rank: int, step: int = 0) -> None:
        """Let others see that this process reads what a rank needs, from a step on, until it ends
        or `leave`s.
        """
        if not self.users.entered:
            with contextlib.suppress(OSError), self._book():
                self.users.enter(rank, step)

    def leave(self) -> None:
        """This process reads the data set no more."""
        users: Users | None = getattr(self, "users", None)
        if users is not None:  # else it was never made: `__del__` comes here too
            users.leave()


def part_of(path: Path) -> Path:
    """Where a file is written until it is renamed."""
    return path.with_name(f"{path.name}.part")


def size_of(path: str) -> int:
    """Of a file; -1 where there is none any more."""
    try:
        return os.lstat(path).st_size
    except FileNotFoundError:
        return -1
