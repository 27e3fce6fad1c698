"""Muon (Jordan et al. 2024) for the matrices of hidden layers, AdamW for all else.

The momentum of a matrix is orthogonalised by five steps of Newton and Schulz in bfloat16, as
`torch.optim.Muon` does it, and its update has AdamW's usual size (Liu et al. 2025,
arXiv:2502.16982: 0.2 sqrt(max(rows, columns))), so that rate and decay are AdamW's too. q, k and v,
one matrix here, are orthogonalised together.

A matrix that is cut into rows is gathered by one rank, which orthogonalises it and sends the rows
back; where every rank holds it whole, one of them works and the others are sent the result. Ranks
take turns: of as many matrices as there are ranks each has one.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.distributed.phases import PHASES
from vtx_scale.distributed.sharding import Leaf
from vtx_scale.specs.run import CUT
from vtx_scale.trainer.moments import Rounding

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5
EPS = 1e-7


def orthogonalised(matrix: Tensor) -> Tensor:
    """(n, m) -> (n, m) of the same singular vectors, with singular values near 1; in bfloat16,
    float64 stays.
    """
    a, b, c = COEFFICIENTS
    x = matrix if matrix.dtype == torch.float64 else matrix.bfloat16()
    x = x.T if matrix.shape[0] > matrix.shape[1] else x
    x = x / x.norm().clamp(min=EPS)
    for _ in range(STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def is_matrix(leaf: Leaf) -> bool:
    """Whether Muon moves it."""
    return leaf.trained and leaf.rule.orthogonal(leaf.name, len(leaf.shape))


class Muon:
    """The step of a set of leaves: matrices in blocks of rows, or whole.

    leaves: all of them trained, in the same order on every rank. Raises UserError where one lies
    otherwise.
    """

    def __init__(self, leaves: Iterable[Leaf]) -> None:
        self.leaves = list(leaves)
        for leaf in self.leaves:
            rows = leaf.cuts == () or (leaf.cuts is not None and leaf.cuts[0][0] == 0)
            if not rows or len(leaf.cuts or ()) > 1 or len(leaf.boxes) > 1:
                raise UserError(CUT["muon"])

    def updates(self, momenta: list[Tensor]) -> list[Tensor]:
        """Of each leaf's momentum the orthogonalised part that lies here. All ranks call it with
        the same leaves.
        """
        out: list[Tensor] = []
        while len(out) < len(self.leaves):
            at = len(out)
            group, world = ranks_of(self.leaves[at])
            end, most = at + 1, min(at + world, len(self.leaves))
            while end < most and ranks_of(self.leaves[end])[0] is group:
                end += 1
            out += self.round(self.leaves[at:end], momenta[at:end], group, world)
        return out

    def round(
        self,
        leaves: list[Leaf],
        momenta: list[Tensor],
        group: dist.ProcessGroup | None,
        world: int,
    ) -> list[Tensor]:
        """At most a matrix a rank: gathered, orthogonalised, sent back."""
        if world == 1:
            return [orthogonalised(m) if m.numel() else m for m in momenta]
        rank = dist.get_rank(group)
        mine: Tensor | None = None
        for turn, (leaf, momentum) in enumerate(zip(leaves, momenta, strict=True)):
            whole = gathered_rows(leaf, momentum, turn, group) if leaf.cuts else momentum
            mine = whole if turn == rank else mine
        done = orthogonalised(mine) if mine is not None else None
        return [
            sent_back(leaf, momentum, done if turn == rank else None, turn, group)
            for turn, (leaf, momentum) in enumerate(zip(leaves, momenta, strict=True))
        ]


def ranks_of(leaf: Leaf) -> tuple[dist.ProcessGroup | None, int]:
    """The group that shares the work of a leaf, None for all ranks, and its size."""
    if leaf.cuts:
        return leaf.cuts[0][1], dist.get_world_size(leaf.cuts[0][1])
    return None, leaf.copies


def rows_a_rank(leaf: Leaf, group: dist.ProcessGroup | None) -> int:
    return -(-leaf.shape[0] // dist.get_world_size(group))


def padded(rows: Tensor, count: int) -> Tensor:
    """(count, m): the rows and zeros below."""
    out = rows.new_zeros(count, *rows.shape[1:])
    out[: len(rows)] = rows
    return out


def gathered_rows(
    leaf: Leaf, here: Tensor, turn: int, group: dist.ProcessGroup | None
) -> Tensor | None:
    """The whole matrix on the rank whose turn it is, None on the others."""
    block = padded(here, rows_a_rank(leaf, group))
    mine = dist.get_rank(group) == turn
    parts = [torch.empty_like(block) for _ in range(dist.get_world_size(group))] if mine else None
    with PHASES.collective():
        dist.gather(block, parts, group=group, group_dst=turn)
    return torch.cat(parts)[: leaf.shape[0]] if parts is not None else None


def sent_back(
    leaf: Leaf, here: Tensor, done: Tensor | None, turn: int, group: dist.ProcessGroup | None
) -> Tensor:
    """This rank's part of the matrix that the rank whose turn it was has orthogonalised."""
    if not leaf.cuts:
        out = torch.empty_like(here) if done is None else done.to(here.dtype).contiguous()
        with PHASES.collective():
            dist.broadcast(out, group=group, group_src=turn)
        return out
    count = rows_a_rank(leaf, group)
    block = here.new_empty(count, *here.shape[1:])
    world = dist.get_world_size(group)
    parts = None
    if done is not None:
        parts = list(torch.split(padded(done.to(here.dtype), count * world), count))
    with PHASES.collective():
        dist.scatter(block, parts, group=group, group_src=turn)
    return block[: len(here)]


class MuonAdamW(torch.optim.Optimizer):
    """Muon on matrices, whose groups have `matrix` true, and `adamw` on the rest, if there is any.

    rounding: of the momentum where it is kept in bfloat16, else None.
    """

    def __init__(
        self,
        params: list[dict[str, Any]],
        leaves: Iterable[Leaf],
        adamw: torch.optim.Optimizer | None,
        rounding: Rounding | None,
    ) -> None:
        super().__init__(params, {"lr": 0.0, "weight_decay": 0.0})
        self.adamw, self.rounding = adamw, rounding
        of = {leaf.tensor: leaf for leaf in leaves}
        apart = [group for group in self.param_groups if group["matrix"]]
        self.matrices = [(group, of[p]) for group in apart for p in group["params"]]
        Muon(leaf for _, leaf in self.matrices)  # refuses at once
        self.state.update(adamw.state if adamw is not None else {})
        for p in (leaf.tensor for _, leaf in self.matrices):
            kind = torch.bfloat16 if rounding is not None else p.dtype
            self.state[p] = {
                "step": torch.zeros(()),
                "momentum_buffer": torch.zeros_like(p, dtype=kind),
            }

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        plain = [group for group in self.param_groups if not group["matrix"]]
        if self.adamw is not None:
            for group, theirs in zip(plain, self.adamw.param_groups, strict=True):
                theirs |= {"lr": group["lr"], "weight_decay": group["weight_decay"]}
            self.adamw.step()
        moved = [(group, leaf, g) for group, leaf in self.matrices if (g := leaf.grad) is not None]
        momenta = [self.momentum(leaf, g) for _, leaf, g in moved]
        updates = Muon(leaf for _, leaf, _ in moved).updates(momenta)
        for (group, leaf, _), update in zip(moved, updates, strict=True):
            size = group["lr"] * 0.2 * max(leaf.shape) ** 0.5
            leaf.tensor.mul_(1 - group["lr"] * group["weight_decay"])
            leaf.tensor.add_(update.to(leaf.tensor.dtype), alpha=-size)

    def momentum(self, leaf: Leaf, g: Tensor) -> Tensor:
        """Nesterov's: the gradient and its average, which moves on."""
        state = self.state[leaf.tensor]
        state["step"] += 1
        kept = state["momentum_buffer"]
        average = kept.to(g.dtype).lerp_(g, 1 - MOMENTUM)  # the same tensor where the types are
        nesterov = g.lerp(average, MOMENTUM)
        if self.rounding is not None:
            self.rounding.write(leaf.tensor, int(state["step"]), (average, kept))
        return nesterov
