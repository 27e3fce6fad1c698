"""What the loop needs of a strategy, and what all of them share.

Gradients are sums over ranks: the loop divides by the global count once, and no factor of the world
appears. The step is norm -> verdict -> step: the norm is ours under every strategy, the same number
on every rank.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vtx_scale.blocks.rules import Rule, table_of
from vtx_scale.distributed.sharding import Box, Slice, box_of, local
from vtx_scale.objectives.base import Objective

__all__ = ["Base", "Strategy"]

# (parameter, kind of state) -> shape, this rank's box, whether every rank holds all of it
Placement = Callable[[nn.Parameter, str], tuple[tuple[int, ...], Box, bool]]


class Strategy(Protocol):
    """The verbs of the loop (module docstring of each file says how it does them)."""

    name: str
    world: int  # ranks that share a batch
    rank: int

    def prepare(
        self, objective: Objective
    ) -> None: ...  # on the meta device; afterwards empty tensors on the device
    def micro(self, last: bool) -> contextlib.AbstractContextManager[None]: ...
    def backward(self, loss: Tensor) -> None: ...
    def norms(self) -> Tensor: ...
    def scale(self, factor: Tensor | float | list[float]) -> None: ...
    def clamp(self) -> None: ...
    def frozen(self, step: int) -> list[nn.Parameter]: ...
    def follow(self, step: int) -> None: ...
    def reshard(self) -> None: ...
    def sum(self, tensor: Tensor) -> Tensor: ...
    def slices(self, optimizer: torch.optim.Optimizer) -> Iterator[Slice]: ...


class Base:
    """One process: the whole state here. The others replace what differs."""

    name = "single"

    def __init__(self, device: torch.device, group: dist.ProcessGroup | None = None) -> None:
        self.device = device
        self.group = group
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.objective: Objective
        self.rules: dict[str, Rule]

    def prepare(self, objective: Objective) -> None:
        self.rules = table_of(objective)
        self.objective = objective.to_empty(device=self.device)
        objective.context.run_probe = self.run_probe

    def run_probe(self, function: Callable[..., Tensor], *rows: Tensor) -> Tensor:
        """function(*rows) of the objective in evaluation, without gradient: float32 on the CPU."""
        was = self.objective.training
        self.objective.eval()
        try:
            with torch.no_grad():
                return self.call(function, *(r.to(self.device) for r in rows)).float().cpu()
        finally:
            self.objective.train(was)

    def call(self, function: Callable[..., Tensor], *rows: Tensor) -> Tensor:
        """Where the objective has its parameters."""
        return function(*rows)

    def micro(self, last: bool) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        torch.autograd.backward(loss)

    def trained(self) -> list[nn.Parameter]:
        return [p for p in self.objective.parameters() if p.requires_grad]

    @torch.no_grad()
    def norms(self) -> Tensor:
        """(P,) float64: the gradient's norm of each trained parameter, 0 where it has none;
        the same on every rank.
        """
        zero = torch.zeros((), dtype=torch.float64, device=self.device)
        squares = torch.stack(
            [zero if p.grad is None else square_sum(local(p.grad)) for p in self.trained()]
        )
        if self.shard_group() is not None:  # then every parameter is cut
            dist.all_reduce(squares, group=self.shard_group())
        return squares.sqrt()

    def shard_group(self) -> dist.ProcessGroup | None:
        return None

    @torch.no_grad()
    def scale(self, factor: Tensor | float | list[float]) -> None:
        """Multiply all gradients; by a factor each, in the order of `norms`,
        where a list is given.
        """
        having = [(k, local(p.grad)) for k, p in enumerate(self.trained()) if p.grad is not None]
        grads = [g for _, g in having]
        if isinstance(factor, list):
            torch._foreach_mul_(grads, [factor[k] for k, _ in having])
        else:
            torch._foreach_mul_(grads, factor)

    @torch.no_grad()
    def clamp(self) -> None:
        """Hold the parameters whose rules have limits within them."""
        for p, limits in self.limited:
            local(p).clamp_(*limits)

    @functools.cached_property
    def limited(self) -> list[tuple[nn.Parameter, tuple[float, float]]]:
        rules = self.rules
        named = self.objective.named_parameters()
        return [(p, limits) for name, p in named if (limits := rules[name].limits) is not None]

    def frozen(self, step: int) -> list[nn.Parameter]:
        """Trained parameters that the optimizer leaves alone at this step;
        once let go, never frozen again.
        """
        return [p for p, until in self.late if step < until]

    @functools.cached_property
    def late(self) -> list[tuple[nn.Parameter, int]]:
        named = [
            (self.rules[name].frozen_until, p) for name, p in self.objective.named_parameters()
        ]
        return [(p, until) for until, p in named if until and p.requires_grad]

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Move the followers on this rank's shards: no communication."""
        for f in self.objective.followers():
            mine = [local(t) for t in f.teacher.parameters()]
            theirs = [local(s.detach()) for s in f.student.parameters()]
            torch._foreach_lerp_(mine, theirs, 1 - f.momentum(step))

    def reshard(self) -> None:
        """After a forward pass without a backward pass: back to the state between two steps."""

    def sum(self, tensor: Tensor) -> Tensor:
        if self.world > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def replicas(self) -> tuple[int, int]:
        """How many ranks hold the same slice, and which of them this is."""
        return self.world, self.rank

    def slices(self, optimizer: torch.optim.Optimizer | None = None) -> Iterator[Slice]:
        replicas, replica = self.replicas()
        place: Placement | None = getattr(optimizer, "place", None)
        for name, p in self.objective.named_parameters():
            states = {"param": p}
            if optimizer is not None and p in optimizer.state:
                states |= {k: v for k, v in optimizer.state[p].items() if k != "step"}
            for kind, tensor in states.items():
                shape, box, everywhere = tuple(p.shape), box_of(p), False
                if kind != "param" and place is not None:
                    shape, box, everywhere = place(p, kind)
                copies = (self.world, self.rank) if everywhere else (replicas, replica)
                yield Slice(f"{kind}/{name}", shape, box, local(tensor.detach()), *copies)
        for name, b in self.objective.named_buffers():
            yield Slice(
                f"buffer/{name}", tuple(b.shape), box_of(b), local(b), self.world, self.rank
            )


def square_sum(t: Tensor) -> Tensor:
    """Sum of squares in float64, so that no strategy's order of addition shows in the norm."""
    norm: Tensor = torch.linalg.vector_norm(t, dtype=torch.float64)
    return norm.square()
