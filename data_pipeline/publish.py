"""Files and folders that appear whole or not at all, with the mode that the umask says.

What is written stands beside its place in a folder with a random name, `.NAME.1a2b3c4d.part`, and
is renamed at the end. A lock in that folder is held while its writer lives: the next writer in the
same place removes what a dead one left. Standard library alone.
"""

import contextlib
import errno
import fcntl
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PART = re.compile(r"^\..*\.[0-9a-f]{8}\.part$", re.DOTALL)
OS_ERROR = re.compile(r"os error (\d+)")
NAME_BYTES = 200  # of a name that are kept in the name of its part: 255 is the limit
HOUR, DAY = 3600.0, 86400.0
AGAIN = 100  # times that a folder is made before its absence is an error
HELD = 30.0  # seconds: what is done under a lock takes milliseconds
UNLOCKED = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # of a file system without locks
LOCK = re.compile(r"^\..*\.lock$", re.DOTALL)

_swept: set[Path] = set()  # folders in which this process has looked for leftovers


@contextmanager
def whole(path: Path, publish: Callable[[Path, Path], None] = os.replace) -> Iterator[Path]:
    """A file of the same name elsewhere to write, which takes the place of `path` at the end, on
    the disk, or is gone: nobody sees half of it.
    """
    with part_of(path) as (folder, mode):
        part = folder / path.name
        part.touch()
        yield part
        settle(part, mode)
        publish(part, path)
        sync(path.parent)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """The same for a folder; what stands at `path` then must be nothing or an empty folder.

    Raises OSError where it is not.
    """
    with part_of(path) as (folder, mode):
        part = folder / path.name
        part.mkdir()
        yield part
        for inside, _, files in os.walk(part):
            for name in files:
                settle(Path(inside, name), mode)
            sync(Path(inside))
        os.rename(part, path)
        sync(path.parent)


def settle(path: Path, mode: int) -> None:
    """Give a file its mode, and return when its bytes are on the disk."""
    if stat.S_IMODE(path.stat().st_mode) != mode:  # some writers make private files
        path.chmod(mode)
    sync(path)


def sync(path: Path) -> None:
    """Return when a file or folder is on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Alone with `path` among all that ask so, on this machine and wherever the file system carries
    locks: by `.NAME.lock` beside it, which is gone at the end.

    A file system without locks is passed over. Raises OSError where nothing can be written there,
    TimeoutError where another process has held it for half a minute.
    """
    lock = path.with_name(f".{stem_of(path)}.lock")
    fd = hold(lock)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(fd)


def hold(lock: Path) -> int:
    """A descriptor that holds the lock of a file, which is made; the file is the one that others
    find by this name.
    """
    deadline = time.monotonic() + HELD
    while True:
        fd = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
        try:
            if flocked(fd) and os.path.samestat(os.fstat(fd), os.stat(lock)):
                return fd
        except FileNotFoundError:
            pass  # who held it has removed it
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        if time.monotonic() > deadline:
            raise TimeoutError(errno.ETIMEDOUT, "another process holds it", str(lock))
        time.sleep(0.002)


def flocked(fd: int) -> bool:
    """Whether the lock of a file is this process's now, or there are none."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        return e.errno in UNLOCKED
    return True


def stem_of(path: Path) -> str:
    """The name of a file, cut so that a name around it still fits."""
    return path.name.encode("utf-8", "surrogateescape")[:NAME_BYTES].decode("utf-8", "ignore")


@contextmanager
def part_of(path: Path) -> Iterator[tuple[Path, int]]:
    """A locked folder beside `path`, removed at the end, and the mode of a plain new file in it.

    Raises OSError, naming `path`, where nothing can be written there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    folder = path.with_name(f".{stem_of(path)}.{os.urandom(4).hex()}.part")
    try:
        within(path.parent, folder.mkdir)
    except OSError as e:
        raise OSError(e.errno, e.strerror, str(path)) from None
    lock = -1
    try:
        lock = os.open(folder / "open", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
        with contextlib.suppress(OSError):  # a file system without locks: age alone tells
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(folder / "open", folder / f"lock-{machine()}")  # it counts from here on
        yield folder, stat.S_IMODE(os.fstat(lock).st_mode)
    except Exception as e:  # a library of Rust's says the number in its text alone
        number = getattr(e, "errno", None) or next(iter(OS_ERROR.findall(str(e))), None)
        if getattr(e, "filename", None) is None and number:  # of a write: whose, it does not say
            raise OSError(int(number), os.strerror(int(number)), str(path)) from e
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock >= 0:
            os.close(lock)


def within(folder: Path, make: Callable[[], None]) -> None:
    """Make something in a folder, and the folder; one that is empty may be taken away by another
    process in between.
    """
    for _ in range(AGAIN):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return make()
        except FileNotFoundError:
            continue
    make()


def machine() -> str:
    """Names this start of this machine: its containers share it, as they share its locks."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"


def sweep(folder: Path) -> None:
    """Remove what dead writers left in a folder; looked at once a process."""
    at = folder.absolute()
    if at in _swept:
        return
    _swept.add(at)
    with contextlib.suppress(OSError):
        for entry in os.scandir(at):
            if PART.match(entry.name) and entry.is_dir(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    clear(Path(entry.path))


def remove_empty(folder: Path) -> None:
    """Remove a folder in which nothing stands, or what dead writers left alone.

    Raises OSError where there is more in it.
    """
    try:
        folder.rmdir()
    except OSError as e:
        if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        with os.scandir(folder) as entries:
            if not all(PART.match(entry.name) for entry in entries):  # ends at the first
                raise
        for part in list(folder.iterdir()):
            clear(part)
        folder.rmdir()


def clear(part: Path) -> None:
    """Remove a folder of `part_of` whose writer is dead.

    On this machine its lock tells. Another machine's lock may not be seen from here: what it wrote
    is left alone for a day. One without a lock is removed if it is empty, after an hour.
    """
    age = time.time() - part.stat().st_mtime
    lock = next(part.glob("lock-*"), None)
    if lock is None:
        if age > HOUR:
            (part / "open").unlink(missing_ok=True)
            part.rmdir()
        return
    if lock.name != f"lock-{machine()}" and age < DAY:
        return
    fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(part, ignore_errors=True)
    except BlockingIOError:
        return
    finally:
        os.close(fd)
