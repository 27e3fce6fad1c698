"""Batch normalisation (Ioffe & Szegedy 2015, arXiv:1502.03167) over the valid rows of
the global batch.

B rows of this rank, C channels. Departs from torch's: statistics are those of all ranks, a masked
row weighs nothing, and the running statistics move after a step that counted, not in the forward
pass, which recomputation runs twice.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtx_scale.blocks.rules import Rule, Rules, ones, zeros
from vtx_scale.blocks.slots import SlotContext
from vtx_scale.distributed.ranks import Ranks

# of modules whose names begin with "norm": gains and variances 1, shifts and means 0
NORMS: Rules = (
    Rule(r"(.*\.)?norm\w*\.(weight|running_var)", ones),
    Rule(r"(.*\.)?norm\w*\.(bias|running_mean)", zeros),
)


class Normalise(torch.autograd.Function):
    """x (B, C, ...) -> y (B, C, ...), mean (C,), biased variance (C,), number of valid rows (1,).

    Sums over rows are in float64, so that statistics and gradients do not show, but for the last
    bit, how rows lie on ranks. Written out because autograd would keep several float32 copies
    of x and add the ranks up more often; in place because new memory costs more than the
    arithmetic. y is new memory and is not kept, so that what follows may overwrite it. Rows that
    are not valid are normalised too, but they weigh nothing and their gradient is 0, whatever
    numbers they hold.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, valid: Tensor, ranks: Ranks, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide, own_B1 = x.to(at_least_float(x)), valid[:, None]
        sums = ranks.sum(
            torch.cat([row_sum(flat(wide).mean(2), own_B1), valid.sum().double().reshape(1)])
        )
        count = sums[-1:]
        mean = (sums[:-1] / count.clamp(min=1)).to(wide.dtype)
        centred = wide - along(mean, x)  # squares of x itself would cancel where its mean is large
        squares_BC = torch.linalg.vector_norm(flat(centred), dim=2).square() / x[0, 0].numel()
        var = (ranks.sum(row_sum(squares_BC, own_B1)) / count.clamp(min=1)).to(wide.dtype)
        inverse = (var + eps).rsqrt()
        y = centred.mul_(along(inverse * weight, x)).add_(along(bias, x))
        ctx.save_for_backward(x, weight, valid, mean, inverse, count)
        ctx.ranks = ranks
        ctx.mark_non_differentiable(mean, var, count)
        return y.to(x.dtype), mean, var, count

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, valid, mean, inverse, count = ctx.saved_tensors
        grad, own_B1 = grad.to(at_least_float(x)), valid[:, None]
        normal = (x - along(mean, x)).mul_(along(inverse, x))
        mine = torch.stack(
            [row_sum(flat(grad).sum(2), own_B1), row_sum(flat(grad * normal).sum(2), own_B1)]
        )  # bias, weight
        dx = None
        if ctx.needs_input_grad[0]:
            shift, slope = (
                along(t.to(grad.dtype), x)
                for t in ctx.ranks.sum(mine) / (count.clamp(min=1) * x[0, 0].numel())
            )
            dx = normal.mul_(-slope).add_(grad).sub_(shift).mul_(along(inverse * weight, x))
            # by their bits: 0 times a number that is none is none, and a where would
            # take new memory
            bits = torch.int32 if dx.dtype is torch.float32 else torch.int64
            dx.view(bits).bitwise_and_(-valid.to(bits).view(-1, *[1] * (x.ndim - 1)))
            dx = dx.to(x.dtype)
        return dx, mine[1].to(weight.dtype), mine[0].to(weight.dtype), None, None, None


# Function.apply has no types
normalise: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]] = Normalise.apply


def flat(x: Tensor) -> Tensor:
    """(B, C, ...) -> (B, C, S)."""
    return x.reshape(*x.shape[:2], -1)


def along(t_C: Tensor, x: Tensor) -> Tensor:
    """(C,) as it meets x (B, C, ...)."""
    return t_C.view(-1, *[1] * (x.ndim - 2))


def row_sum(x_BC: Tensor, own_B1: Tensor) -> Tensor:
    """(C,) float64 over the valid rows; what another row holds may be no number."""
    return torch.where(own_B1, x_BC, x_BC.new_zeros(())).sum(0, dtype=torch.float64)


class BatchNorm(nn.Module):
    """(B, C, ...): with rows by the statistics of their batch, without by the running ones;
    at least float32 inside.

    What it gives is new memory that may be overwritten.
    """

    def __init__(self, features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))
        self.running_mean: Tensor
        self.running_var: Tensor
        # by pass: mean, unbiased variance, how much they count
        self.pending: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

    def forward(self, x: Tensor, slots: SlotContext | None = None) -> Tensor:
        if slots is None:
            dtype = at_least_float(x)
            mean, var, weight, bias = (
                t.to(dtype) for t in (self.running_mean, self.running_var, self.weight, self.bias)
            )
            return F.batch_norm(x.to(dtype), mean, var, weight, bias, eps=self.eps).to(x.dtype)
        y, mean, var, count = normalise(
            x, self.weight, self.bias, slots.valid, slots.ranks, self.eps
        )
        numbers = count * x[0, 0].numel()
        var = var * (numbers / (numbers - 1).clamp(min=1)).to(var.dtype)
        share = self.momentum * (count > 0).to(count.dtype)
        # the same again where the pass is computed again
        self.pending[slots.call] = (mean, var, share)
        return y

    @torch.no_grad()
    def update_statistics(self) -> None:
        """The running statistics take in what the passes since the last update saw."""
        for mean, var, share in self.pending.values():
            self.running_mean.lerp_(
                mean.to(self.running_mean.dtype), share.to(self.running_mean.dtype)
            )
            self.running_var.lerp_(var.to(self.running_var.dtype), share.to(self.running_var.dtype))
        self.discard_statistics()

    def discard_statistics(self) -> None:
        """What the passes saw goes: their step did not count."""
        self.pending.clear()


def at_least_float(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
