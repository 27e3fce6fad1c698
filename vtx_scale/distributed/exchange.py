"""Files that go from rank to rank, a chunk at a time, and small values that all ranks share."""

import contextlib
import json
import os
from collections.abc import Iterable, Sequence
from io import BufferedWriter, FileIO
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

CHUNK = 8 << 20  # bytes on their way at once, in each direction

Group = dist.ProcessGroup | None


def all_json(value: Any, group: Group = None) -> list[Any]:
    """A value of every rank, as JSON of any size, in rank order."""
    body = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    world = dist.get_world_size(group)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(world)]
    dist.all_gather(sizes, torch.tensor([len(body)]), group=group)
    room = int(max(sizes))
    rows = [torch.empty(room, dtype=torch.uint8) for _ in range(world)]
    dist.all_gather(rows, torch.cat([body, body.new_zeros(room - len(body))]), group=group)
    return [json.loads(bytes(row[: int(n)].tolist())) for row, n in zip(rows, sizes, strict=True)]


def swap(send: tuple[Tensor, int] | None, receive: tuple[Tensor, int] | None, group: Group) -> None:
    """Send one tensor and receive another, each with the rank at the other end; both at once."""
    works = []
    if receive is not None:
        works.append(dist.irecv(receive[0], group=group, group_src=receive[1]))
    if send is not None:
        works.append(dist.isend(send[0], group=group, group_dst=send[1]))
    for work in works:
        if work is not None:
            work.wait()


def move_files(
    waves: Iterable[Sequence[tuple[str, int, int]]], rank: int, folder: Path, group: Group = None
) -> list[str]:
    """Send and receive files of `folder`, which has the same names on all ranks; of those that this
    rank receives, the names that could not be read there or written here.

    waves: (name, source, target), the same on every rank; in each a rank sends one at most and
    receives one at most. What comes is written beside its place and moved there whole. Raises
    RuntimeError where the other end is gone.
    """
    missed = []
    for wave in waves:
        out = next((t for t in wave if t[1] == rank), None)
        back = next((t for t in wave if t[2] == rank), None)
        if out is None and back is None:
            continue
        reader = Reader(folder / out[0] if out else None)
        writer = Writer(folder / back[0] if back else None)
        with reader, writer:
            to, of = out[2] if out else -1, back[1] if back else -1
            move(reader, writer, to, of, group)
        if back and not writer.well:
            missed.append(back[0])
    return missed


def move(reader: "Reader", writer: "Writer", to: int, of: int, group: Group) -> None:
    """One file in each direction, to and from these ranks; -1 where there is none."""
    size, coming = torch.tensor([reader.size]), torch.tensor([-1])
    swap((size, to) if to >= 0 else None, (coming, of) if of >= 0 else None, group)
    left, more = reader.size, int(coming)
    writer.open(more)
    while left > 0 or more > 0:
        n, m = max(0, min(CHUNK, left)), max(0, min(CHUNK, more))
        out, back = reader.read(n), torch.empty(m, dtype=torch.uint8)
        swap((out, to) if n else None, (back, of) if m else None, group)
        writer.write(back)
        left, more = left - n, more - m


class Reader:
    """A file that goes out. size: in bytes, -1 for one that is not there."""

    def __init__(self, path: Path | None) -> None:
        self.file: FileIO | None = None
        self.size = -1
        with contextlib.suppress(OSError):
            if path is not None:
                self.file = path.open("rb", buffering=0)
                self.size = os.fstat(self.file.fileno()).st_size

    def read(self, n: int) -> Tensor:
        """(n,) uint8; of a file that was cut since, zeros, which its digest tells."""
        chunk = torch.zeros(n, dtype=torch.uint8)
        if self.file is not None and n:
            with contextlib.suppress(OSError):
                self.file.readinto(chunk.numpy().data)
        return chunk

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()


class Writer:
    """A file that comes in: in its place when all of it was written. What cannot be written is
    taken and dropped, so that the other end is not held up. well: whether it is there.
    """

    def __init__(self, path: Path | None) -> None:
        self.path, self.well = path, False
        self.file: BufferedWriter | None = None

    def open(self, size: int) -> None:
        """size: in bytes, -1 where the other end has no such file."""
        if self.path is None or size < 0:
            return
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = part_of(self.path).open("wb")
            self.well = True

    def write(self, chunk: Tensor) -> None:
        """The next bytes, (m,) uint8."""
        if self.file is not None and self.well and len(chunk):
            try:
                self.file.write(chunk.numpy().data)
            except OSError:
                self.well = False

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self.file is None or self.path is None:
            return
        try:
            self.file.close()
        except OSError:
            self.well = False
        if self.well and kind is None:
            part_of(self.path).rename(self.path)
        else:
            part_of(self.path).unlink(missing_ok=True)


def part_of(path: Path) -> Path:
    """Where a file is written that is not whole yet."""
    return path.with_name(f"{path.name}.part")
