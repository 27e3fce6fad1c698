"""Ends what a process has started and left behind: `python guard.py PID FOLDER`,
told by its standard input.

Ray ends most of itself when the process that started it is killed, but not all: two of its agents
then wait for minutes for a head that will not come back. The end of the input means that the
process is gone; then FOLDER goes too.
"""

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE = 3.0  # seconds until what does not end by itself is ended


@contextmanager
def guarded(folder: Path) -> Iterator[None]:
    """Whatever this process starts within the block has ended when the block has,
    or soon after this process died.
    """
    guard = subprocess.Popen(
        [sys.executable, "-I", __file__, str(os.getpid()), str(folder)],
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert guard.stdin is not None and guard.stdout is not None
    guard.stdout.readline()  # it has seen who was here before
    try:
        yield
    finally:
        guard.communicate("done")


def processes() -> dict[int, tuple[int, int]]:
    """Process id -> (its parent, when it started), of all that live on this machine."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended meanwhile
        if fields[0] != "Z":
            found[int(entry.name)] = (int(fields[1]), int(fields[19]))
    return found


def family(root: int) -> set[tuple[int, int]]:
    """(process id, when it started) of all descendants of `root`;
    an id alone may come to belong to somebody else.
    """
    alive = processes()
    children: dict[int, list[int]] = {}
    for pid, (parent, _) in alive.items():
        children.setdefault(parent, []).append(pid)
    found, look = set(), list(children.get(root, []))
    while look:
        pid = look.pop()
        found.add((pid, alive[pid][1]))
        look += children.get(pid, [])
    return found


def living(known: set[tuple[int, int]]) -> set[tuple[int, int]]:
    return known & {(pid, started) for pid, (_, started) in processes().items()}


def end(known: set[tuple[int, int]]) -> None:
    deadline = time.monotonic() + PATIENCE
    while living(known) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid, _ in living(known):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def main(argv: list[str]) -> None:
    root, folder = int(argv[0]), Path(argv[1])
    before = family(root)  # this process is one of them
    print("watching", flush=True)
    known: set[tuple[int, int]] = set()
    while True:
        known |= family(root) - before
        if select.select([sys.stdin], [], [], 0.5)[0]:
            break
    message = sys.stdin.read()
    end(known)
    if not message:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1:])
