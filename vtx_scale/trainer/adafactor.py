"""Adafactor (Shazeer & Stern 2018) in the form that trained ViT-g/14 (Zhai et al. 2022):
memory of 1.5 parameters.

The second moment of a tensor whose two largest dimensions have 32 or more is kept as the means over
each of them. No relative step, no scaling by the parameter, no clipping of updates; a first moment,
a plain average stored in bfloat16, comes last. Departs from the authors' code in that q, k and v,
one tensor here, are factored together.
Leaves may be blocks along any dimension: sums over one that is cut go over its ranks, all tensors
in one message.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.optimizer import ParamsT

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.distributed.phases import PHASES
from vtx_scale.distributed.sharding import Leaf, Place, Shape
from vtx_scale.specs.run import CUT

LEAST = 32
EPS = 1e-30


def factored(shape: Shape) -> tuple[int, int] | None:
    """The two largest dimensions, in order, where both have at least LEAST."""
    if len(shape) < 2:
        return None
    a, b = sorted(sorted(range(len(shape)), key=lambda d: shape[d])[-2:])
    return (a, b) if min(shape[a], shape[b]) >= LEAST else None


@dataclass
class Mean:
    """The mean over a dimension of a leaf's parameter: of the block that is here, until `complete`
    has added up the ranks that cut the dimension.
    """

    leaf: Leaf
    dim: int
    value: Tensor

    @property
    def groups(self) -> list[dist.ProcessGroup]:
        """The groups of ranks over which it is spread."""
        return [group for dim, group in self.leaf.cuts or () if dim == self.dim]


def complete(means: list[Mean]) -> None:
    """Add up over ranks, in place, a message a group."""
    spread: dict[dist.ProcessGroup, list[Mean]] = {}
    for mean in means:
        for group in mean.groups:
            spread.setdefault(group, []).append(mean)
    for group, parts in spread.items():
        flat = torch.cat([m.value.reshape(-1) for m in parts])
        with PHASES.collective():
            dist.all_reduce(flat, group=group)
        sizes = [m.value.numel() for m in parts]
        for mean, summed in zip(parts, torch.split(flat, sizes), strict=True):
            mean.value = summed.view_as(mean.value)


class Adafactor(torch.optim.Optimizer):
    """betas: of the first moment, and the cap of the second's, which is min(cap,
    1 - t^-0.8) at step t = 1, 2, ...

    leaves: of the tensors in `params`. Raises UserError where one is no block of its parameter.
    """

    def __init__(
        self,
        params: ParamsT,
        leaves: Iterable[Leaf],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": 0.0})
        self.leaf_of = {leaf.tensor: leaf for leaf in leaves if leaf.trained}
        for p, leaf in self.leaf_of.items():
            if leaf.cuts is None:
                raise UserError(CUT["adafactor"])
            state: dict[str, Any] = {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(p, dtype=torch.bfloat16),
            }
            dims = factored(leaf.shape)
            if dims is None:
                state["exp_avg_sq"] = torch.zeros_like(p)
            else:
                for kind, gone in zip(("col", "row"), dims, strict=True):
                    shape = [n for d, n in enumerate(p.shape) if d != gone] if leaf.boxes else [0]
                    state[f"exp_avg_sq_{kind}"] = p.new_zeros(shape)
            self.state[p] = state

    def place(self, leaf: Leaf, kind: str) -> Place:
        """Where a tensor of the state lies: a mean lacks the dimension that is gone, and has as
        many more copies as ranks cut that.
        """
        dims = factored(leaf.shape)
        if dims is None or kind in ("exp_avg", "average"):
            return leaf.place
        gone = dims[1] if kind == "exp_avg_sq_row" else dims[0]
        copies, copy = leaf.copies, leaf.copy
        for dim, group in leaf.cuts or ():
            if dim == gone:
                world = dist.get_world_size(group)
                copies, copy = copies * world, copy * world + dist.get_rank(group)
        rest = [tuple(x for d, x in enumerate(box) if d != gone) for box in leaf.boxes]
        shape = tuple(n for d, n in enumerate(leaf.shape) if d != gone)
        return Place(shape, tuple(dict.fromkeys(rest)), copies, copy)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        moved = [
            (group, self.leaf_of[p], p.grad)
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        means: dict[tuple[str, int], Mean] = {}  # over cut dimensions, and over the first one
        for _, leaf, g in moved:
            for gone in factored(leaf.shape) or ():
                mean = Mean(leaf, gone, g)
                if gone == 0 or mean.groups:
                    mean.value = (g.square() + EPS).sum(gone) / leaf.shape[gone]
                    means[leaf.name, gone] = mean
        complete(list(means.values()))
        whole: dict[str, Mean] = {}
        for group, leaf, g in moved:
            if (dims := factored(leaf.shape)) is not None:
                self.update_means(group, leaf, g, means)
                b = dims[1]
                # equals the mean of the row
                col = self.state[leaf.tensor]["exp_avg_sq_col"]
                mean = Mean(leaf, b, col.mean(b - 1, keepdim=True))
                if mean.groups:
                    mean.value = col.sum(b - 1, keepdim=True) / leaf.shape[b]
                whole[leaf.name] = mean
        complete(list(whole.values()))
        for group, leaf, g in moved:
            self.move(group, leaf, g, whole.get(leaf.name))

    def keep(self, group: dict[str, Any], leaf: Leaf) -> float:
        """The share of the second moment that stays at the step that comes."""
        return float(
            min(group["betas"][1], 1 - (self.state[leaf.tensor]["step"].item() + 1) ** -0.8)
        )

    def update_means(
        self, group: dict[str, Any], leaf: Leaf, g: Tensor, means: dict[tuple[str, int], Mean]
    ) -> None:
        """The second moment's means over its two dimensions."""
        state, keep = self.state[leaf.tensor], self.keep(group, leaf)
        square = g.square() + EPS
        for kind, gone in zip(("col", "row"), factored(leaf.shape) or (), strict=True):
            mean = means.get((leaf.name, gone))
            if mean is not None:
                state[f"exp_avg_sq_{kind}"].lerp_(mean.value, 1 - keep)
            elif g.numel():
                state[f"exp_avg_sq_{kind}"].lerp_(square.mean(gone), 1 - keep)

    def move(self, group: dict[str, Any], leaf: Leaf, g: Tensor, mean: Mean | None) -> None:
        """A leaf by one step. mean: of the second moment, None where it is not factored."""
        here, state, keep = leaf.tensor, self.state[leaf.tensor], self.keep(group, leaf)
        state["step"] += 1
        if not g.numel():
            return
        if mean is None:
            state["exp_avg_sq"].lerp_(g.square() + EPS, 1 - keep)
            update = g * state["exp_avg_sq"].rsqrt()
        else:
            a, b = factored(leaf.shape) or (0, 1)
            row, col = state["exp_avg_sq_row"], state["exp_avg_sq_col"]
            update = g * row.rsqrt().unsqueeze(b) * (col / mean.value).rsqrt().unsqueeze(a)
        first = state["exp_avg"]
        update = first.to(update.dtype).lerp(update, 1 - group["betas"][0])
        first.copy_(update)
        here.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])
