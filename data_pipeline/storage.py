"""Where bytes lie: a small protocol, local folders, and the shard lists that users write."""

import glob
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Protocol

from data_pipeline.errors import UserError


@dataclass(frozen=True)
class Head:
    """Size in bytes, and a tag that changes with the content."""

    size: int
    tag: str


class Storage(Protocol):
    """Objects by name. `put_if_absent` and `replace_if` are atomic; a reader never sees half an object."""

    def get_range(self, name: str, offset: int, length: int) -> bytes: ...
    def put(self, name: str, body: bytes) -> None: ...
    def put_if_absent(self, name: str, body: bytes) -> bool: ...
    def replace_if(self, name: str, body: bytes, tag: str) -> str | None: ...
    def list(self, prefix: str) -> Iterator[str]: ...
    def head(self, name: str) -> Head | None: ...
    def delete(self, name: str) -> None: ...


class Folder:
    """A local folder as a `Storage`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        with (self.root / name).open("rb") as f:
            f.seek(offset)
            return f.read(length)

    def _part(self, name: str, body: bytes) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}")
        part.write_bytes(body)
        return part

    def put(self, name: str, body: bytes) -> None:
        os.replace(self._part(name, body), self.root / name)

    def put_if_absent(self, name: str, body: bytes) -> bool:
        part = self._part(name, body)
        try:
            os.link(part, self.root / name)  # exclusive on local disks and NFS
            return True
        except FileExistsError:
            return False
        finally:
            part.unlink()

    def replace_if(self, name: str, body: bytes, tag: str) -> str | None:
        """Only the holder of an object may call it: a local replace compares, but does not lock."""
        head = self.head(name)
        if head is None or head.tag != tag:
            return None
        self.put(name, body)
        made = self.head(name)
        return made.tag if made else None

    def list(self, prefix: str) -> Iterator[str]:
        for path in sorted(self.root.rglob("*")):
            name = path.relative_to(self.root).as_posix()
            if path.is_file() and name.startswith(prefix):
                yield name

    def head(self, name: str) -> Head | None:
        try:
            stat = (self.root / name).stat()
        except FileNotFoundError:
            return None
        return Head(stat.st_size, f"{stat.st_mtime_ns:x}-{stat.st_size:x}")

    def delete(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)


def braces(pattern: str) -> list[str]:
    """Every name of a pattern such as `a-{000..012}.tar` or `{x,y}.tar`."""
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = []
    for i, part in enumerate(parts):
        span = re.fullmatch(r"(\d+)\.\.(\d+)", part)
        if i % 2 == 0:
            choices.append([part])
        elif span:
            a, b = span.groups()
            width = len(a) if a.startswith("0") or len(a) == len(b) else 0
            choices.append([f"{n:0{width}d}" for n in range(int(a), int(b) + 1)])
        else:
            choices.append(part.split(","))
    return ["".join(x) for x in product(*choices)]


def expand(shards: str) -> list[Path]:
    """The files that a user means by a folder (its *.tar), a brace pattern, a glob, or a comma list of these.

    Raises UserError, naming what is missing, where nothing or not everything is there.
    """
    found: list[Path] = []
    for part in re.split(r",(?![^{]*\})", shards):
        scheme = re.match(r"^([A-Za-z][A-Za-z0-9+]*):", part)
        if scheme and scheme[1].lower() == "s3":
            raise UserError(f"{part}: this version reads local shards; copy them to a folder and give that.")
        if scheme:
            raise UserError(f"{part}: {scheme[1]}: is never opened; give a local folder, pattern or list of tars.")
        path = Path(part).expanduser()
        if path.is_dir():
            inside = sorted(path.glob("*.tar"))
            if not inside:
                raise UserError(f"{path} holds no *.tar: give the folder of the shards, or a pattern.")
            found += inside
        elif glob.has_magic(part) and "{" not in part:
            matched = sorted(Path(p) for p in glob.glob(str(path)))
            if not matched:
                raise UserError(f"{part} matches no file: look at the path and the pattern.")
            found += matched
        else:
            for name in braces(str(path)):
                if not Path(name).is_file():
                    raise UserError(f"{name} does not exist: give a folder, pattern or list of shards that does.")
                found.append(Path(name))
    doubled = {p for p in found if found.count(p) > 1} if len(found) < 5000 else set()
    if doubled:
        raise UserError(f"{sorted(doubled)[0]} is named twice: give each shard once.")
    return [p.absolute() for p in found]


def short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
