"""What an objective sees of the other ranks: sums, gathers with gradient, and contrastive losses
for which features go round the ranks.

Of a ring, n rows of this rank, E features, W ranks: each rank's columns visit every rank in turn,
and are compared with its rows a chunk at a time. What it needs of memory is (n, chunk) and a few
(n, E), whatever W is; the gathered form needs (W n, E) and (n, W n). The backward pass sends the
columns round once more with their gradient beside them, which is complete when it is home.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from vtx_scale.distributed.phases import PHASES

# torch 2.13 renamed them and warns at the old names
reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
CHUNK = 512  # columns that a ring compares with this rank's rows at a time
INF = float("inf")


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

    def shift(self, *tensors: Tensor) -> Callable[[], tuple[Tensor, ...]]:
        """Send tensors to the next rank, the last one's to the first; the call of what is returned
        waits for those of the rank before. Until then they must not be written to.
        """
        return lambda: tensors

    def ring_softmax(
        self, x_nE: Tensor, y_nE: Tensor, valid_n: Tensor, chunk: int = CHUNK
    ) -> Tensor:
        """(n,) the cross-entropy of each row's products with the columns of all ranks, its own
        column being the right one; 0 where it is not valid. With gradient to x and y.

        valid_n: bool; what is not valid is nobody's column. chunk: columns at a time.
        """
        return softmax_with_gradient(x_nE, y_nE, valid_n, self, chunk)

    def ring_sigmoid(
        self, x_nE: Tensor, y_nE: Tensor, bias: Tensor, valid_n: Tensor, chunk: int = CHUNK
    ) -> Tensor:
        """(n,) the sum of each row's questions of yes (its own column) or no (all others) by the
        logits x y + bias; 0 where it is not valid. With gradient to x, y and bias.

        bias: (1,). valid_n, chunk: as of `ring_softmax`.
        """
        return sigmoid_with_gradient(x_nE, y_nE, bias, valid_n, self, chunk)


class GroupRanks(Ranks):
    """The ranks of a process group; all of them must call, with tensors of one shape."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank, self.world = dist.get_rank(group), dist.get_world_size(group)

    def sum(self, tensor: Tensor) -> Tensor:
        out = tensor.detach().clone()
        with PHASES.collective():
            dist.all_reduce(out, group=self.group)
        return out

    def gather(self, tensor: Tensor) -> Tensor:
        return with_gradient(tensor, self.group)

    def gather_plain(self, tensor: Tensor) -> Tensor:
        bits = tensor.dtype is torch.bool
        joined = gathered(tensor.to(torch.uint8) if bits else tensor, self.group)
        return joined.bool() if bits else joined

    def shift(self, *tensors: Tensor) -> Callable[[], tuple[Tensor, ...]]:
        if self.world == 1:
            return super().shift(*tensors)
        # gloo carries no bool
        sent = [t.to(torch.uint8) if t.dtype is torch.bool else t.contiguous() for t in tensors]
        came = [torch.empty_like(t) for t in sent]
        after, before = (self.rank + 1) % self.world, (self.rank - 1) % self.world
        sends = [dist.P2POp(dist.isend, t, group=self.group, group_peer=after) for t in sent]
        receives = [dist.P2POp(dist.irecv, t, group=self.group, group_peer=before) for t in came]
        works = dist.batch_isend_irecv([*sends, *receives])

        def arrived() -> tuple[Tensor, ...]:
            with PHASES.collective():
                for work in works:
                    work.wait()
            return tuple(c.to(t.dtype) for c, t in zip(came, tensors, strict=True))

        return arrived


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
    with PHASES.collective():
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
        with PHASES.collective():
            reduce_scatter(out, grad.contiguous(), group=ctx.group)
        return out, None


# Function.apply has no types
with_gradient: Callable[[Tensor, dist.ProcessGroup | None], Tensor] = Gather.apply


def visitors(ranks: Ranks, *tensors: Tensor) -> Iterator[tuple[bool, tuple[Tensor, ...]]]:
    """(whether they are this rank's own, tensors) of every rank, its own first; the next are on
    their way while these are used.
    """
    for hop in range(ranks.world):
        more = hop + 1 < ranks.world
        arrived = ranks.shift(*tensors) if more else None
        yield hop == 0, tensors
        if arrived is not None:
            tensors = arrived()


def chunks(n: int, chunk: int) -> Iterator[slice]:
    """0 ... n - 1 in slices of at most `chunk`."""
    return (slice(a, min(a + chunk, n)) for a in range(0, n, chunk))


class RingSoftmax(torch.autograd.Function):
    """`Ranks.ring_softmax`: log-sum-exp over what visits; backward computes the shares again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, valid: Tensor, ranks: Ranks, chunk: int) -> Tensor:
        lse, right = x.new_full((len(x),), -INF), x.new_zeros(len(x))
        for own, (visitor, there) in visitors(ranks, y, valid):
            for c in chunks(len(y), chunk):
                logits = x @ visitor[c].T
                if own:
                    right[c] = logits[c].diagonal()
                logits.masked_fill_(~there[c], -INF)
                lse = torch.logaddexp(lse, logits.logsumexp(1))
        # a row that is not valid has a share of 0 in every column
        lse = lse.masked_fill(~valid, INF)
        ctx.ranks, ctx.chunk = ranks, chunk
        ctx.save_for_backward(x, y, valid, lse)
        return torch.where(valid, lse - right, 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        x, y, valid, lse = ctx.saved_tensors
        grad = torch.where(valid, grad, 0.0)
        dx, dy = torch.zeros_like(x), torch.zeros_like(y)
        for own, (visitor, there) in visitors(ctx.ranks, y, valid):
            for c in chunks(len(y), ctx.chunk):
                share = (x @ visitor[c].T).masked_fill_(~there[c], -INF)
                share.sub_(lse[:, None]).exp_().mul_(grad[:, None])
                if own:
                    share[c].diagonal().sub_(grad[c])
                dx.addmm_(share, visitor[c])
                dy[c].addmm_(share.T, x)
            (dy,) = ctx.ranks.shift(dy)()
        return dx, dy, None, None, None


class RingSigmoid(torch.autograd.Function):
    """`Ranks.ring_sigmoid`: sums over what visits; backward computes the logits again."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, bias: Tensor, valid: Tensor, ranks: Ranks, chunk: int
    ) -> Tensor:
        loss = x.new_zeros(len(x))
        for own, (visitor, there) in visitors(ranks, y, valid):
            for c in chunks(len(y), chunk):
                wrong = x @ visitor[c].T + bias
                if own:
                    wrong[c].diagonal().neg_()
                loss -= F.logsigmoid(wrong.neg_()).masked_fill_(~there[c], 0.0).sum(1)
        ctx.ranks, ctx.chunk = ranks, chunk
        ctx.save_for_backward(x, y, bias, valid)
        return torch.where(valid, loss, 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        x, y, bias, valid = ctx.saved_tensors
        grad = torch.where(valid, grad, 0.0)
        dx, dy, dbias = torch.zeros_like(x), torch.zeros_like(y), torch.zeros_like(bias)
        for own, (visitor, there) in visitors(ctx.ranks, y, valid):
            for c in chunks(len(y), ctx.chunk):
                wrong = x @ visitor[c].T + bias
                if own:
                    wrong[c].diagonal().neg_()
                wrong.sigmoid_().masked_fill_(~there[c], 0.0).mul_(grad[:, None])
                if own:
                    wrong[c].diagonal().neg_()
                dx.addmm_(wrong, visitor[c])
                dy[c].addmm_(wrong.T, x)
                dbias += wrong.sum()
            (dy,) = ctx.ranks.shift(dy)()
        return dx, dy, dbias, None, None, None


softmax_with_gradient: Callable[[Tensor, Tensor, Tensor, Ranks, int], Tensor] = RingSoftmax.apply
sigmoid_with_gradient: Callable[[Tensor, Tensor, Tensor, Tensor, Ranks, int], Tensor] = (
    RingSigmoid.apply
)
