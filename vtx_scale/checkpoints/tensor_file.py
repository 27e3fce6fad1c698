"""A safetensors file: written so that what lies on the disk is what was handed over, and read by
offset.

Read not through a memory map: what retention removes stays readable while it is open, and on a
network file system a file that is gone is an error that one can catch, where a map ends the
process.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from vtx_scale.checkpoints.format import MALFORMED, Damaged
from vtx_scale.data_pipeline.storage import Object

HEADER_LIMIT = 100_000_000  # bytes, as safetensors itself has it
CHUNK = 4 << 20
DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


def dtype_name(dtype: torch.dtype) -> str:
    """float32 for torch.float32."""
    return str(dtype).removeprefix("torch.")


def dtype_of(name: str) -> torch.dtype:
    """The type of that name. Raises Damaged for one that is not stored here."""
    if name not in DTYPES:
        raise Damaged(f"there is no type {name!r}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, as they lie."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data


def save_file(tensors: dict[str, Tensor], path: Path, disk: bool = True) -> str:
    """Write contiguous tensors on the CPU, and return the SHA-256 of the file when it is on the
    disk. disk: False for a file in memory, which is neither synced nor read back.

    The digest is of the bytes as they were handed over, and what was written is read back and
    compared with them. Raises OSError where it cannot be written, or is not what was handed over.
    """
    # the widest first, so that each lies at a multiple of its size
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header, at = {}, 0
    for name in names:
        tensor = tensors[name]
        end = at + tensor.numel() * tensor.element_size()
        kind = DTYPES[dtype_name(tensor.dtype)]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    first = memoryview(len(text).to_bytes(8, "little") + text)
    pieces = [first, *(bytes_of(tensors[name]) for name in names if tensors[name].numel())]
    with ThreadPoolExecutor(2) as others, path.open("w+b", buffering=0) as file:
        digest = others.submit(digest_of, pieces)
        for piece in pieces:
            write_all(file, piece)
        if not disk:
            return digest.result()
        synced = others.submit(os.fsync, file.fileno())
        compare(file, pieces)
        synced.result()
        return digest.result()


def digest_of(pieces: Iterable[memoryview]) -> str:
    """SHA-256 of bytes one after the other."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def write_all(file: BinaryIO, piece: memoryview) -> None:
    """Every byte: one call takes at most 2 GiB."""
    while len(piece):
        piece = piece[file.write(piece[: 1 << 30]) :]


def compare(file: BinaryIO, pieces: Iterable[memoryview]) -> None:
    """Raises OSError where a file does not hold these bytes."""
    file.seek(0)
    for piece in pieces:
        for start in range(0, len(piece), CHUNK):
            wanted = piece[start : start + CHUNK]
            found = bytearray(len(wanted))
            got = 0
            while got < len(wanted) and (n := file.readinto(memoryview(found)[got:])):  # type: ignore[attr-defined]
                got += n
            if found != wanted:  # of a bytearray this is one memcmp
                raise OSError(
                    f"{file.name}: what was written is not what is there, near byte "
                    f"{file.tell() - got}"
                )


class TensorFile:
    """The entries of a safetensors file; the header is read with the first entry."""

    def __init__(self, name: str, file: Object) -> None:
        self.name, self.file = name, file
        self._entries: dict[str, tuple[int, int]] | None = None  # first byte, one behind the last

    def close(self) -> None:
        """Let the file go; a second time is no error."""
        self.file.close()

    def rows(
        self,
        entry: str,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        first: int,
        end: int,
        out: Tensor | None = None,
    ) -> Tensor:
        """Rows `first` to `end` of an entry of this shape and type; a scalar counts as one row.

        out: a contiguous tensor of that size and type on the CPU, which is filled and returned.
        Raises Damaged where the file has no such entry, or one of another size.
        """
        start = self.place(entry, shape, dtype)
        if out is None:
            out = torch.empty((end - first, *shape[1:]), dtype=dtype)
        row = math.prod(shape[1:]) * dtype.itemsize
        self.file.read_into(bytes_of(out), start + first * row)
        return out

    def place(self, entry: str, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        """The first byte of an entry of this shape and type.

        Raises Damaged where the file has no such entry, or one of another size.
        """
        if self._entries is None:
            self._entries = self._header()
        if entry not in self._entries:
            raise Damaged(f"{self.name} has no entry {entry}")
        start, stop = self._entries[entry]
        if stop - start != math.prod(shape) * dtype.itemsize or stop > self.file.size:
            raise Damaged(f"{self.name}: {entry} has {stop - start} bytes, not {list(shape)}")
        return start

    def _header(self) -> dict[str, tuple[int, int]]:
        """Where each entry lies, in bytes of the file."""
        try:
            room = self.file.size - 8
            if room < 0:
                raise ValueError("it has no header")
            length = int.from_bytes(self.file.read(0, 8), "little")
            if length > min(HEADER_LIMIT, room):
                raise ValueError("its header is too long")
            found = json.loads(self.file.read(8, length))
            found.pop("__metadata__", None)
            entries = {}
            for name, entry in found.items():
                a, b = entry["data_offsets"]
                if not (isinstance(a, int) and isinstance(b, int) and 0 <= a <= b):
                    raise ValueError(f"{name} lies nowhere")
                entries[name] = (8 + length + a, 8 + length + b)
            return entries
        except MALFORMED as e:
            raise Damaged(f"{self.name} is no safetensors file ({e})") from e
