"""Lines that a run has written, read again, and cut at a resume: of a file, of the segments that
stand for it in a bucket, and of a copy of either. Standard library alone.
"""

import functools
import json
import os
from pathlib import Path
from typing import Any

from vtx_scale.data_pipeline.objects import AnyPath, ObjectPath, storage_of
from vtx_scale.data_pipeline.storage import Changed
from vtx_scale.trainer.output import PLACE, add_bytes, json_line, send_rest
from vtx_scale.trainer.segments import segments

TRIES = 4  # readings of an object that others replace meanwhile


def truncate_logs_after(folder: AnyPath, step: int) -> None:
    """Remove what was written beyond the step that a run resumes at: it will be written again."""
    send_rest()
    for name in ("metrics.jsonl", "ledger.jsonl", "evaluations.jsonl"):
        PLACE.folder = folder
        PLACE.attempt(name, functools.partial(truncate_after, folder / name, step))


def truncate_after(path: AnyPath, step: int, field: str = "step") -> None:
    """Remove the lines of a JSON-lines file beyond `step`, in its segments too. What is no line of
    JSON, as a full disk or a fault leaves it, is kept aside in NAME.torn. Raises OSError.
    """
    ended: set[str] = set()  # whose older segments have nothing beyond
    for part in reversed(segments(path)):
        writer = part.name.rpartition("-")[0]
        if writer not in ended and cut(part, step, field):
            ended.add(writer)
    if path.is_file():
        cut(path, step, field)


def cut(path: AnyPath, step: int, field: str) -> bool:
    """`truncate_after` of one file; whether nothing had to go, and some line says of a step up to
    that. Raises OSError.
    """
    kept, torn, before = [], [], False
    body = path.read_bytes()
    for line in body.splitlines(keepends=True):
        entry = parsed(line)
        if entry is None:
            torn.append(line.rstrip(b"\n") + b"\n")
        elif not (isinstance(at := entry.get(field, 0), int | float) and at > step):
            before = before or field in entry
            old = b"NaN" in line or b"Infinity" in line  # written before JSON was strict
            kept.append((json_line(entry) if old else line.rstrip(b"\n")) + b"\n")
    rest = b"".join(kept)
    if isinstance(path, ObjectPath) and rest == body:
        return before
    if any(line.strip() for line in torn):
        keep_aside(path, b"".join(torn))
    rewrite(path, body, rest)
    return before and rest == body


def keep_aside(path: AnyPath, torn: bytes) -> None:
    """Add to NAME.torn beside a file. Raises OSError."""
    aside = path.parent / f"{path.name}.torn"
    if isinstance(aside, Path):
        add_bytes(aside, torn)
        return
    there = aside.read_bytes() if aside.is_file() else b""
    storage_of(path.parent).put(aside.name, there + torn)


def rewrite(path: AnyPath, body: bytes, rest: bytes) -> None:
    """Put `rest` in place of `body`, of an object nothing where nothing is left. Raises OSError."""
    if isinstance(path, Path) and body.startswith(rest):  # needs no room on the disk
        os.truncate(path, len(rest))
    elif rest or isinstance(path, Path):
        storage_of(path.parent).put(path.name, rest)
    else:
        path.unlink(missing_ok=True)


def written(path: AnyPath) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file and of its segments; none where there is no such file.

    Raises OSError where it cannot be read: no lines and none that can be read are not the same.
    """
    parts, file = segments(path), [path] if path.is_file() else []
    # what is not appended to here came with a copy, and is older
    parts = [*file, *parts] if isinstance(path, ObjectPath) else [*parts, *file]
    body = b"".join(body_of(part) for part in parts)
    return [entry for line in body.splitlines() if (entry := parsed(line)) is not None]


def body_of(part: AnyPath) -> bytes:
    """All of a file or object, nothing of one that went away. One that others replace is asked for
    again. Raises OSError.
    """
    for last in (False,) * (TRIES - 1) + (True,):
        try:
            return part.read_bytes()
        except FileNotFoundError:
            break
        except Changed:
            if last:
                raise
    return b""


def parsed(line: bytes) -> dict[str, Any] | None:
    """The object of a line, None where it is none."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None
