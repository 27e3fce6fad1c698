"""Sources for `vtx data build` and `repack`, and storages under which a process is killed."""

import contextlib
import csv
import hashlib
import os
import signal
from pathlib import Path

from tests.data_pipeline.make import jpeg
from vtx_scale.data_pipeline.opening import open_index
from vtx_scale.data_pipeline.read import ChunkReader
from vtx_scale.data_pipeline.storage import Folder
from vtx_scale.data_pipeline.tools.packing import pack


def class_folders(root: Path, classes=("cat", "dog"), each: int = 4) -> Path:
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(each):
            (root / name / f"{i}.v1.jpg").write_bytes(jpeg(10 * c + i))
    return root


def table(path: Path, rows: list[list[str]], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


def samples_of(folder: Path) -> list[tuple[str, dict[str, bytes]]]:
    """Key and members of every sample of a set, in order."""
    index = open_index(str(folder))
    reader = ChunkReader(index)
    found = []
    for g in range(index.n):
        members = reader.sample(g)
        plain = {k: v for k, v in members.items() if not k.startswith("__")}
        found.append((members["__key__"], plain))
    reader.close()
    return found


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of each file but the index, which holds times."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".safetensors"
    }


def packed(source, out: Path, workers: int = 0, storage=None) -> tuple[dict, list[dict]]:
    """Write a set; its summary, and the lines of what is left out."""
    lines: list[dict] = []
    storage = storage or Folder(out)
    made = pack(storage, source, workers, lambda: open_index(str(out)), lines.append)
    return made, lines


class Deadly(Folder):
    """A folder whose process is killed at the n-th change of it, before (or, for a shard, between
    its writing and its place) anything is changed.
    """

    def __init__(self, root: Path, places: int) -> None:
        super().__init__(root)
        self.places = places

    def count(self) -> None:
        self.places -= 1
        if self.places < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def put(self, name, body):
        self.count()
        super().put(name, body)

    def put_file(self, name, path):
        self.count()
        super().put_file(name, path)

    def put_if_absent(self, name, body):
        self.count()
        return super().put_if_absent(name, body)

    @contextlib.contextmanager
    def scratch(self, name):
        with super().scratch(name) as path:
            path.write_bytes(b"half")
            self.count()
            yield path

    def delete(self, name):
        self.count()
        super().delete(name)


def killed_at(source, out: Path, places: int) -> bool:
    """Write a set in a child that is killed at a place; False where it comes to its end before."""
    child = os.fork()
    if not child:
        try:
            packed(source, out, storage=Deadly(out, places))
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL)
    return status != 0
