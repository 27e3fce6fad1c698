"""Copies of a rank's slices, made inside the step, with the table that says what they are."""

import zlib
from collections.abc import Callable, Iterable
from typing import Any

import torch

from vtx_scale.checkpoints.tensor_file import dtype_name
from vtx_scale.distributed.sharding import Slice

Staged = dict[str, torch.Tensor]


def stage(
    slices: Iterable[Slice],
    room: Staged,
    copy: int | None = None,
    each: Callable[[], None] = lambda: None,
) -> tuple[Staged, dict[str, int], list[dict[str, Any]]]:
    """The copies by entry, their checksums, and the rows of the table.

    room: copies of before, whose memory is used again. copy: of what several ranks hold alike the
    share of this one is taken, of the slice's own one if None. each: called behind every copy.
    """
    staged: Staged = {}
    sums: dict[str, int] = {}
    table: list[dict[str, Any]] = []
    for s in slices:
        if s.tensor.numel() == 0 or owner(s) != (s.replica if copy is None else copy):
            continue
        entry = f"{s.key}#{len(table)}"
        staged[entry] = copied(s.tensor.detach(), room.get(entry))
        sums[entry] = checksum(staged[entry])
        each()
        table.append(
            {
                "key": s.key,
                "shape": list(s.shape),
                "dtype": dtype_name(s.tensor.dtype),
                "box": [list(b) for b in s.box],
                "entry": entry,
            }
        )
    return staged, sums, table


def owner(s: Slice) -> int:
    """Which of the ranks that hold a slice alike writes it."""
    return zlib.crc32(s.key.encode()) % s.replicas


def copied(tensor: torch.Tensor, room: torch.Tensor | None) -> torch.Tensor:
    """A copy on the CPU, in `room` where that is of its size and type."""
    if room is None or room.shape != tensor.shape or room.dtype != tensor.dtype:
        room = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return room.copy_(tensor)


def checksum(tensor: torch.Tensor) -> int:
    """The sum of the words of a contiguous tensor on the CPU: one bit turned changes it, and it is
    quicker than the copy.
    """
    raw = tensor.reshape(-1).view(torch.uint8)
    words = raw.numel() // 8 * 8
    return int(raw[:words].view(torch.int64).sum()) + int(raw[words:].sum())
