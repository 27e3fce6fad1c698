"""A safetensors file read by offset through one open descriptor.

Not through a memory map: what retention removes stays readable while the descriptor is open, and on
a network file system a file that is gone is an error that one can catch, where a map ends the
process.
"""

import json
import math
import os
from pathlib import Path

import torch
from torch import Tensor

from vtx_scale.checkpoints.format import Damaged
from vtx_scale.data_pipeline.storage import File

HEADER_LIMIT = 100_000_000  # bytes, as safetensors itself has it


class TensorFile(File):
    """The entries of a safetensors file; opened at once, the header is read with the first entry.

    Raises OSError where it cannot be opened or read.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._entries: dict[str, tuple[int, int]] | None = None  # first byte, one behind the last

    def close(self) -> None:
        """Let the descriptor go; a second time is no error."""
        fd, self.fd = getattr(self, "fd", -1), -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()

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
        if self._entries is None:
            self._entries = self._header()
        if entry not in self._entries:
            raise Damaged(f"{self.path.name} has no entry {entry}")
        start, stop = self._entries[entry]
        row = math.prod(shape[1:]) * dtype.itemsize
        if stop - start != row * (shape[0] if shape else 1) or stop > self.size:
            raise Damaged(f"{self.path.name}: {entry} has {stop - start} bytes, not {shape}")
        if out is None:
            out = torch.empty((end - first, *shape[1:]), dtype=dtype)
        self._read_into(
            out.detach().reshape(-1).view(torch.uint8).numpy().data, start + first * row
        )
        return out

    def _header(self) -> dict[str, tuple[int, int]]:
        try:
            length = int.from_bytes(self.read(0, 8), "little")
            if length > min(HEADER_LIMIT, self.size):
                raise ValueError("its header is too long")
            found = json.loads(self.read(8, length))
            found.pop("__metadata__", None)
            offsets = {name: entry["data_offsets"] for name, entry in found.items()}
            return {name: (8 + length + a, 8 + length + b) for name, (a, b) in offsets.items()}
        except (ValueError, TypeError, KeyError, AttributeError) as e:
            raise Damaged(f"{self.path.name} is no safetensors file ({e})") from e

    def _read_into(self, out: memoryview, offset: int) -> None:
        while len(out):
            got = os.preadv(self.fd, [out], offset)
            if not got:
                raise OSError(f"{self.path} ends at byte {offset}")
            out, offset = out[got:], offset + got
