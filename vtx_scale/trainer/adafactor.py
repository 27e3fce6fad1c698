"""Adafactor (Shazeer & Stern 2018) in the form that trained ViT-g/14 (Zhai et al. 2022):
memory of 1.5 parameters.

The second moment of a tensor whose two largest dimensions have 32 or more is kept as the means over
each of them. No relative step, no scaling by the parameter, no clipping of updates; a first moment,
a plain average stored in bfloat16, comes last. Departs from the authors' code in that q, k and v,
one tensor here, are factored together.
Parameters may be cut along their first dimension: what must be added up over the ranks goes
in one message.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from vtx_scale.distributed.sharding import Box, box_of, local

LEAST = 32
EPS = 1e-30


def factored(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """The two largest dimensions, in order, where both have at least LEAST."""
    if len(shape) < 2:
        return None
    a, b = sorted(sorted(range(len(shape)), key=lambda d: shape[d])[-2:])
    return (a, b) if min(shape[a], shape[b]) >= LEAST else None


class Adafactor(torch.optim.Optimizer):
    """betas: of the first moment, and the cap of the second's, which is min(cap,
    1 - t^-0.8) at step t = 1, 2, ...
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        shards: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": 0.0})
        self.shards = shards
        for p in (p for group in self.param_groups for p in group["params"]):
            here = local(p)
            state: dict[str, Any] = {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(p, dtype=torch.bfloat16),
            }
            dims = factored(p.shape)
            if dims is None:
                state["exp_avg_sq"] = torch.zeros_like(p)
            else:
                a, b = dims
                state["exp_avg_sq_row"] = here.new_zeros(
                    [n for d, n in enumerate(here.shape) if d != b]
                )
                # the mean over a cut dimension is whole on every rank
                column = here.shape if a else p.shape
                state["exp_avg_sq_col"] = here.new_zeros(
                    [n for d, n in enumerate(column) if d != a]
                )
            self.state[p] = state

    def place(self, p: nn.Parameter, kind: str) -> tuple[tuple[int, ...], Box, bool]:
        """Shape, this rank's box, and whether every rank holds all of it:
        where a tensor of the state lies.
        """
        dims, shape, box = factored(p.shape), tuple(p.shape), box_of(p)
        if dims is None or kind == "exp_avg":
            return shape, box, False
        gone = dims[1] if kind == "exp_avg_sq_row" else dims[0]
        return (
            tuple(n for d, n in enumerate(shape) if d != gone),
            tuple(x for d, x in enumerate(box) if d != gone),
            gone == 0,
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        moved = [
            (group, p) for group in self.param_groups for p in group["params"] if p.grad is not None
        ]
        over_first: list[tuple[nn.Parameter, Tensor]] = []  # sums over the cut dimension
        for _, p in moved:
            dims = factored(p.shape)
            if dims is not None and dims[0] == 0 and p.grad is not None:
                over_first.append((p, (local(p.grad).square() + EPS).sum(0) / p.shape[0]))
        if over_first and self.shards is not None:
            flat = torch.cat([t.reshape(-1) for _, t in over_first])
            dist.all_reduce(flat, group=self.shards)
            parts = torch.split(flat, [t.numel() for _, t in over_first])
            over_first = [
                (p, part.view_as(t)) for (p, t), part in zip(over_first, parts, strict=True)
            ]
        columns = {id(p): t for p, t in over_first}
        for group, p in moved:
            self.move(group, p, columns.get(id(p)))

    def move(self, group: dict[str, Any], p: nn.Parameter, column: Tensor | None) -> None:
        assert p.grad is not None
        state, here, g = self.state[p], local(p), local(p.grad)
        state["step"] += 1
        beta, cap = group["betas"]
        keep = min(cap, 1 - state["step"].item() ** -0.8)
        if here.numel():
            square = g.square() + EPS
        dims = factored(p.shape)
        if dims is None:
            if not here.numel():
                return
            second = local(state["exp_avg_sq"])
            second.lerp_(square, 1 - keep)
            update = g * second.rsqrt()
        else:
            a, b = dims
            if a == 0:
                state["exp_avg_sq_col"].lerp_(column, 1 - keep)
            if not here.numel():
                return
            row, col = state["exp_avg_sq_row"], state["exp_avg_sq_col"]
            row.lerp_(square.mean(b), 1 - keep)
            if a:
                col.lerp_(square.mean(a), 1 - keep)
            # equals the mean of the row, and lies whole on every rank
            mean = col.mean(b - 1, keepdim=True)
            update = g * row.rsqrt().unsqueeze(b) * (col / mean).rsqrt().unsqueeze(a)
        first = local(state["exp_avg"])
        update = first.to(update.dtype).lerp(update, 1 - beta)
        first.copy_(update)
        here.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])
