"""What an objective sees of the other ranks: sums, and gathers with gradient."""

import json
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# torch 2.13 renamed them and warns at the old names
reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Ranks:
    """One process: every collective is the identity."""

    rank = 0
    world = 1
    group: dist.ProcessGroup | None = None  # None: all ranks

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, without gradient."""
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """(n, ...) of every rank -> (W n, ...), in rank order;
        the gradient is summed over ranks.
        """
        return tensor

    def gather_plain(self, tensor: Tensor) -> Tensor:
        """The same without gradient."""
        return tensor


class GroupRanks(Ranks):
    """The ranks of a process group; all of them must call, with tensors of one shape."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank, self.world = dist.get_rank(group), dist.get_world_size(group)

    def sum(self, tensor: Tensor) -> Tensor:
        out = tensor.detach().clone()
        dist.all_reduce(out, group=self.group)
        return out

    def gather(self, tensor: Tensor) -> Tensor:
        return with_gradient(tensor, self.group)

    def gather_plain(self, tensor: Tensor) -> Tensor:
        bits = tensor.dtype is torch.bool
        joined = gathered(tensor.to(torch.uint8) if bits else tensor, self.group)
        return joined.bool() if bits else joined


def gathered_json(value: Any, ranks: Ranks, room: int = 1 << 14) -> list[Any]:
    """A small value of every rank, as JSON of at most `room` bytes; {} in place of a larger one."""
    body = json.dumps(value).encode()
    row = torch.zeros(1, room, dtype=torch.uint8)
    if len(body) <= room:
        row[0, : len(body)] = torch.frombuffer(bytearray(body), dtype=torch.uint8)
    rows = (bytes(r.tolist()).rstrip(b"\x00") for r in ranks.gather_plain(row))
    return [json.loads(r or b"{}") for r in rows]


def gathered(tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    out = tensor.new_empty((dist.get_world_size(group) * len(tensor), *tensor.shape[1:]))
    all_gather(out, tensor.contiguous(), group=group)
    return out


class Gather(torch.autograd.Function):
    """All-gather along the first dimension; backward sums what every rank sends home."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        return gathered(tensor, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        world = dist.get_world_size(ctx.group)
        out = grad.new_empty((len(grad) // world, *grad.shape[1:]))
        reduce_scatter(out, grad.contiguous(), group=ctx.group)
        return out, None


# Function.apply has no types
with_gradient: Callable[[Tensor, dist.ProcessGroup | None], Tensor] = Gather.apply
