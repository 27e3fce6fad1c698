"""What only Linux has, and what takes its place elsewhere. Standard library alone."""

import os
import resource
import sys
from pathlib import Path


def processors() -> int:
    """How many processes may run at once here."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def wake_pipe() -> tuple[int, int]:
    """(reader, writer) of a pipe for signals: neither end waits, no child inherits it."""
    ends = os.pipe()
    for end in ends:
        os.set_blocking(end, False)
    return ends


def threads() -> int:
    """Of this process, those of libraries too; 0 where the system does not say."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return 0


def memory() -> tuple[int, int] | None:
    """(bytes that may be taken, bytes in all) of this machine; None where it does not say."""
    try:
        rows = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
        kib = {row[0].rstrip(":"): int(row[1]) for row in rows}
        return kib["MemAvailable"] * 1024, kib["MemTotal"] * 1024
    except (OSError, KeyError, ValueError, IndexError):
        return None


def peak_memory() -> int:
    """The most bytes that this process has had resident so far."""
    try:
        rows = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # what else there is also counts what a parent had before this process began
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
    return next((int(row.split()[1]) * 1024 for row in rows if row.startswith("VmHWM:")), 0)


def reserve(fd: int, length: int) -> None:
    """Give a file its length, and its room on the disk where the system can promise it.

    Raises OSError where there is none.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, length)
    else:
        os.ftruncate(fd, length)


def forget(fd: int, offset: int, length: int) -> None:
    """Let the next read of these bytes come from the disk, where the system can be asked to."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, offset, length, getattr(os, "POSIX_FADV_DONTNEED", 4))
