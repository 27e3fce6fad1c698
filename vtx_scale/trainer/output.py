"""The one place where a run writes for those who watch it:
lines on stderr, and files that grow in its folder.

What stands in `metrics.jsonl`, `evaluations.jsonl`, `ledger.jsonl` and `log.txt` goes through
`append` and `Ledger`; what a terminal shows goes through `say`. Standard library alone, so that a
launcher has them without torch.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

LINE_BYTES = 4000  # of a ledger entry: a line up to a page is appended whole by one write


def say(line: str) -> None:
    """A line for people, on stderr."""
    print(line, file=sys.stderr, flush=True)


def silent(line: str) -> None:
    """For callers whose user has heard it already."""


def append(path: Path, line: bytes) -> None:
    """Add one line, ended here, by one write: ranks and launcher may share the file."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(fd, line + b"\n")
    finally:
        os.close(fd)


def append_text(folder: Path, line: str) -> None:
    """A line of log.txt, with the time."""
    append(folder / "log.txt", f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}".encode())


class Ledger:
    """`ledger.jsonl`: one line for everything masked, skipped, retried, repaired.

    Every rank appends.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "ledger.jsonl"

    def write(self, **entry: Any) -> None:
        append(
            self.path, json.dumps(entry, separators=(",", ":"), default=str).encode()[:LINE_BYTES]
        )


def truncate_logs_after(folder: Path, step: int) -> None:
    """Remove what was written beyond the step that a run resumes at: it will be written again."""
    for name in ("metrics.jsonl", "ledger.jsonl", "evaluations.jsonl"):
        truncate_after(folder / name, step)


def truncate_after(path: Path, step: int, field: str = "step") -> None:
    """Remove the lines of a JSON-lines file beyond `step`, torn ones too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if line.endswith(b"\n") and entry.get(field, 0) <= step:
            kept.append(line)
    part = path.with_suffix(".part")
    part.write_bytes(b"".join(kept))
    os.replace(part, path)
