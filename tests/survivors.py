"""Processes that a run left behind."""

import time
from pathlib import Path


def mentioning(text: str) -> list[tuple[int, str]]:
    """(pid, command line) of the processes whose command line or environment names `text`."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            if state != "Z" and text.encode() in command + (entry / "environ").read_bytes():
                found.append(
                    (int(entry.name), command.replace(b"\0", b" ").decode(errors="replace"))
                )
        except OSError:
            continue
    return found


def assert_none_survives(folder: Path, seconds: float = 5.0) -> None:
    """No process that carries the folder's parent in its environment or arguments
    lives after `seconds`.
    """
    until = time.monotonic() + seconds
    while (left := mentioning(str(folder.parent))) and time.monotonic() < until:
        time.sleep(0.1)
    assert not left, left
