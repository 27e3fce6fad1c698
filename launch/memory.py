"""A machine's folder for snapshots in memory: it outlives the ranks, and goes with their launcher.
Standard library alone.

It is named by its launcher and removed at its end. Where the launcher dies by SIGKILL, a shell that
waits for nothing else removes it; where that dies too, the next launcher on the machine does.
"""

import itertools
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

from vtx_scale.checkpoints.format import steps
from vtx_scale.data_pipeline.storage import Folder

VARIABLE = "VTX_MEMORY"
MEMORY = Path("/dev/shm")
# what it is for, user, namespace, process, its start
NAME = re.compile(r"vtx-(?:memory|beats)-(\d+)-(\d+)-(\d+)-(\d+)-\d+")
SERIAL = itertools.count()


class Room:
    """The folder of a launcher. Raises OSError where it cannot be made."""

    def __init__(self) -> None:
        self.path = owned("memory", MEMORY)
        self._end = subprocess.Popen(
            ["/bin/sh", "-c", 'read _; rm -rf "$1"', "sh", str(self.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a terminal's signals are not for it
            cwd="/",
            env={},
        )

    @property
    def environment(self) -> dict[str, str]:
        """What the ranks must know."""
        return {VARIABLE: str(self.path)}

    def newest(self) -> int:
        """The newest step of which there is a snapshot, 0 for none."""
        return max(steps(Folder(self.path)), default=0)

    def close(self) -> None:
        """Remove it; a second time is no error."""
        if self._end.stdin is not None:
            self._end.stdin.close()
        self._end.wait()
        shutil.rmtree(self.path, ignore_errors=True)


def room_for(request: Path) -> Room | None:
    """Of the run that a request asks for, None where it makes no snapshots, or no folder can be
    made: its ranks say so.
    """
    recipe = json.loads(request.read_text()).get("recipe", {})
    if not recipe.get("checkpoint", {}).get("memory"):
        return None
    try:
        return Room()
    except OSError:
        return None


def owned(purpose: str, home: Path) -> Path:
    """A new folder of this process, after those of launchers that are gone were removed there.
    purpose: "memory" or "beats". Raises OSError where it cannot be made.
    """
    sweep(home)
    here = [os.getuid(), namespace(), os.getpid(), started(os.getpid()), next(SERIAL)]
    path = home / (f"vtx-{purpose}-" + "-".join(map(str, here)))
    path.mkdir(mode=0o700)
    return path


def sweep(home: Path = MEMORY) -> None:
    """Remove the folders of this user's launchers that are gone."""
    for path in home.glob("vtx-*-*") if home.is_dir() else []:
        if not (found := NAME.fullmatch(path.name)):
            continue
        user, space, process, start = map(int, found.groups())
        if user == os.getuid() and space == namespace() and started(process) != start:
            shutil.rmtree(path, ignore_errors=True)


def started(process: int) -> int:
    """When a process began, in ticks since the machine did; -1 where it is gone."""
    try:
        body = Path(f"/proc/{process}/stat").read_text()
        return int(body.rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return -1


def namespace() -> int:
    """In which the numbers of processes hold."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0
