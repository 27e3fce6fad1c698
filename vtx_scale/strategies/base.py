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
    """The verbs of the loop, in the order of a step; the module docstring of each file says how it
    does them.

    "Trained parameters" are those with requires_grad, P of them, in the order of
    `objective.parameters()`. All ranks call the same verbs in the same order.
    """

    name: str
    world: int  # ranks that share a batch
    rank: int

    def prepare(self, objective: Objective) -> None:
        """Take an objective on the meta device, once: afterwards its tensors are empty ones on the
        device, cut as the strategy cuts them.

        Raises LookupError or ValueError where its parameter rules do not say all.
        """

    def micro(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Around forward and backward pass of one micro-batch; at the last one of a step gradients
        are summed over the ranks.
        """

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss () to those that are there."""

    def norms(self) -> Tensor:
        """(P,) float64: the norm of each trained parameter's summed gradient, 0 where it has none;
        the same on every rank.
        """

    def scale(self, factor: Tensor | float | list[float]) -> None:
        """Multiply all gradients by one factor, or by P factors in the order of `norms`."""

    def clamp(self) -> None:
        """Hold the parameters whose rules have limits within them."""

    def frozen(self, step: int) -> list[nn.Parameter]:
        """The trained parameters that rest at this step (`Rule.frozen_until`)."""

    def follow(self, step: int) -> None:
        """Move the objective's followers, after a step that counted."""

    def reshard(self) -> None:
        """Back to the state between two steps, after a forward pass without a backward pass."""

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place."""

    def slices(self, optimizer: torch.optim.Optimizer) -> Iterator[Slice]:
        """What this rank puts into a checkpoint: parameters, the optimizer's state of each, and
        buffers, each with its place in the whole.
        """


class Base:
    """One process: the whole state here. The others replace what differs.

    device: where tensors lie. group: the process group of the ranks that share a batch, None for
    all.
    """

    name = "single"

    def __init__(self, device: torch.device, group: dist.ProcessGroup | None = None) -> None:
        self.device = device
        self.group = group
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.objective: Objective
        self.rules: dict[str, Rule]

    def prepare(self, objective: Objective) -> None:
        """Read the objective's rules, give it empty memory on the device, and let its probes run
        here.

        Raises LookupError or ValueError where its parameter rules do not say all.
        """
        self.rules = table_of(objective)
        self.objective = objective.to_empty(device=self.device)
        objective.context.run_probe = self.run_probe

    def run_probe(self, function: Callable[..., Tensor], *rows: Tensor) -> Tensor:
        """function(*rows) of the objective in evaluation, without gradient: float32 on the CPU.

        What `Context.run_probe` is of an objective under a strategy.
        """
        was = self.objective.training
        self.objective.eval()
        try:
            with torch.no_grad():
                return self.call(function, *(r.to(self.device) for r in rows)).float().cpu()
        finally:
            self.objective.train(was)

    def call(self, function: Callable[..., Tensor], *rows: Tensor) -> Tensor:
        """function(*rows) where the objective has its whole parameters; a strategy that shards them
        gathers them first.
        """
        return function(*rows)

    def micro(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Around a micro-batch; of one process there is nothing to do."""
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss () to those that are there."""
        torch.autograd.backward(loss)

    def trained(self) -> list[nn.Parameter]:
        """The parameters with requires_grad, P of them, in the objective's order."""
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
        """The ranks over which parameters are cut, None where each holds them whole."""
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
        for p, limits in self._limited:
            local(p).clamp_(*limits)

    @functools.cached_property
    def _limited(self) -> list[tuple[nn.Parameter, tuple[float, float]]]:
        rules = self.rules
        named = self.objective.named_parameters()
        return [(p, limits) for name, p in named if (limits := rules[name].limits) is not None]

    def frozen(self, step: int) -> list[nn.Parameter]:
        """Trained parameters that the optimizer leaves alone at this step;
        once let go, never frozen again.
        """
        return [p for p, until in self._late if step < until]

    @functools.cached_property
    def _late(self) -> list[tuple[nn.Parameter, int]]:
        named = [
            (self.rules[name].frozen_until, p) for name, p in self.objective.named_parameters()
        ]
        return [(p, until) for until, p in named if until and p.requires_grad]

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Move the followers on this rank's shards: teacher += (1 - momentum) (student - teacher).

        No communication.
        """
        for f in self.objective.followers():
            mine = [local(t) for t in f.teacher.parameters()]
            theirs = [local(s.detach()) for s in f.student.parameters()]
            torch._foreach_lerp_(mine, theirs, 1 - f.momentum(step))

    def reshard(self) -> None:
        """After a forward pass without a backward pass: back to the state between two steps."""

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.world > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def replicas(self) -> tuple[int, int]:
        """How many ranks hold the same slice, and which of them this is."""
        return self.world, self.rank

    def slices(self, optimizer: torch.optim.Optimizer | None = None) -> Iterator[Slice]:
        """This rank's part of every parameter, of the optimizer's state where one is given, and of
        every buffer: "param/NAME", "KIND/NAME", "buffer/NAME".

        The tensors are the live ones: to read a checkpoint is to write into them.
        """
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
