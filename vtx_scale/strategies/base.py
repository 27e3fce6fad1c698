"""What the loop needs of a strategy, and what all of them share.

Gradients are sums over ranks: the loop divides by the global count once, and no factor of the world
appears. The step is norm -> verdict -> step: norm and optimizer are ours under every strategy, on
leaves, and the norm is the same number on every rank.
"""

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vtx_scale.blocks.rules import Rule, table_of
from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.distributed.phases import PHASES
from vtx_scale.distributed.ranks import GroupRanks, Ranks
from vtx_scale.distributed.sharding import Leaf, Place, Slice, local, slices_at, whole_box
from vtx_scale.objectives.base import Objective, sources
from vtx_scale.specs.run import System

__all__ = ["Base", "Strategy", "move_followers", "whole_leaves"]

# (leaf, kind of state) -> where that tensor of the optimizer's state lies
Placement = Callable[[Leaf, str], Place]
Losses = tuple[Tensor, dict[str, Tensor]]


class Strategy(Protocol):
    """The verbs of the loop, in the order of a step; the module docstring of each file says how it
    does them.

    "Trained parameters" are those with requires_grad, P of them, in the order of
    `objective.parameters()`. All ranks call the same verbs in the same order. What goes over ranks
    by itself (loss, counts, batch statistics, the loader) is over `data`, the ranks that share a
    batch; requests, errors and norms are over `all`.
    """

    name: str
    device: torch.device
    data: Ranks
    all: Ranks
    speaks: bool  # on one of the ranks that hold the same samples

    def prepare(self, objective: Objective) -> None:
        """Take an objective on the meta device, once: afterwards its tensors are empty ones on the
        device, cut as the strategy cuts them.

        Raises LookupError or ValueError where its parameter rules do not say all.
        """

    def leaves(self) -> list[Leaf]:
        """This rank's parts of all parameters, in the order of `objective.named_parameters()`."""

    def settled(self) -> None:
        """After values were written through `slices`: let the forward pass read them."""

    def forward(self, batch: Batch, step: int) -> Losses:
        """The objective's forward pass: what it returns."""

    def micro(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Around forward and backward pass of one micro-batch; when the last one of a step leaves,
        the leaves have their gradients, summed over the ranks.
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
        """Hold the leaves whose rules have limits within them, before `publish`."""

    def publish(self) -> None:
        """After a step: bring the leaves to what the forward pass reads."""

    def follow(self, step: int) -> None:
        """Move the objective's followers, after a step that counted."""

    def clear(self) -> None:
        """Drop all gradients, of a step that was skipped too."""

    def frozen(self, step: int) -> list[Tensor]:
        """The trained leaves that rest at this step (`Rule.frozen_until`)."""

    def reshard(self) -> None:
        """Back to the state between two steps, after a forward pass without a backward pass."""

    def totals(self, shared: Tensor, own: Tensor) -> tuple[list[float], list[float]]:
        """In one message: the sums of `shared` over `data`, and of `own` over `all`."""

    def drifted(self) -> list[str]:
        """The names of parameters whose copies on several ranks are not the same."""

    def slices(self, optimizer: torch.optim.Optimizer | None = None) -> Iterator[Slice]:
        """What this rank puts into a checkpoint: parameters, the optimizer's state of each, and
        buffers, each with its place in the whole.
        """

    def close(self) -> None:
        """At the end, after which no verb is called: let go of all that something outside of the
        strategy holds, so that its memory is free when the strategy is.
        """


class Base:
    """One process, and copies on every rank: the whole state here. The others replace what differs.

    device: where tensors lie. system: how it is computed. compute: the type of matrix products
    where it differs from that of the parameters.
    """

    name = "single"
    speaks = True

    def __init__(
        self,
        device: torch.device,
        system: System | None = None,
        compute: torch.dtype | None = None,
    ) -> None:
        self.device, self.compute = device, compute
        self.system = system or System()
        several = dist.is_initialized() and dist.get_world_size() > 1
        self.all: Ranks = GroupRanks() if several else Ranks()
        self.data: Ranks = self.all
        self.objective: Objective
        self.rules: dict[str, Rule]
        self.sources: dict[str, str]  # a follower's parameter -> the one that it follows

    def prepare(self, objective: Objective) -> None:
        """Read the objective's rules, give it empty memory on the device, and let its probes run
        here.

        Raises LookupError or ValueError where its parameter rules do not say all.
        """
        self.rules = table_of(objective)
        self.objective = self.materialise(objective)
        self.sources = sources(objective)
        self._leaves = self.parts()
        objective.context.run_probe = self.run_probe

    def materialise(self, objective: Objective) -> Objective:
        """Give an objective on the meta device empty memory."""
        return objective.to_empty(device=self.device)

    def parts(self) -> list[Leaf]:
        """The leaves, once the objective has its memory."""
        return whole_leaves(self.objective, self.rules, self.all)

    def leaves(self) -> list[Leaf]:
        """This rank's parts of all parameters, in the objective's order."""
        return self._leaves

    def settled(self) -> None:
        """After values were written through slices; the forward pass reads the leaves."""

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

    def forward(self, batch: Batch, step: int) -> Losses:
        """What the objective's forward pass returns for a micro-batch."""
        losses: Losses = self.objective(batch, step)
        return losses

    def micro(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Around a micro-batch; of one process there is nothing to do."""
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss () to those that are there."""
        torch.autograd.backward(loss)

    @functools.cached_property
    def trained(self) -> list[str]:
        """The names of the parameters with requires_grad, P of them, in the objective's order."""
        return [name for name, p in self.objective.named_parameters() if p.requires_grad]

    @functools.cached_property
    def _trained_leaves(self) -> list[tuple[int, Leaf]]:
        number = {name: k for k, name in enumerate(self.trained)}
        return [(number[leaf.name], leaf) for leaf in self.leaves() if leaf.trained]

    def _grads(self) -> list[tuple[int, Leaf, Tensor]]:
        return [(k, leaf, g) for k, leaf in self._trained_leaves if (g := leaf.grad) is not None]

    @torch.no_grad()
    def norms(self) -> Tensor:
        """(P,) float64: the gradient's norm of each trained parameter, 0 where it has none;
        the same on every rank.
        """
        zero = torch.zeros((), dtype=torch.float64, device=self.device)
        values = [zero] * len(self.trained)
        everywhere = self._everywhere
        for k, leaf, grad in self._grads():
            if everywhere or leaf.copy == 0:
                values[k] = values[k] + square_sum(grad).to(self.device)
        squares = torch.stack(values)
        return (squares if everywhere else self.all.sum(squares)).sqrt()

    @functools.cached_property
    def _everywhere(self) -> bool:
        """Whether each rank holds all that is trained."""
        return all(leaf.copies == self.all.world for _, leaf in self._trained_leaves)

    @torch.no_grad()
    def scale(self, factor: Tensor | float | list[float]) -> None:
        """Multiply all gradients; by a factor each, in the order of `norms`,
        where a list is given.
        """
        having = self._grads()
        grads = [g for _, _, g in having]
        if isinstance(factor, list):
            torch._foreach_mul_(grads, [factor[k] for k, _, _ in having])
        else:
            torch._foreach_mul_(grads, factor)

    @torch.no_grad()
    def clamp(self) -> None:
        """Hold the leaves whose rules have limits within them."""
        for tensor, limits in self._limited:
            tensor.clamp_(*limits)

    @functools.cached_property
    def _limited(self) -> list[tuple[Tensor, tuple[float, float]]]:
        named = [(leaf.tensor, leaf.rule.limits) for leaf in self.leaves()]
        return [(tensor, limits) for tensor, limits in named if limits is not None]

    def publish(self) -> None:
        """After a step; the forward pass reads the leaves."""

    def clear(self) -> None:
        """Drop all gradients."""
        for p in self.objective.parameters():
            p.grad = None
        for leaf in self.leaves():
            leaf.tensor.grad = None

    def frozen(self, step: int) -> list[Tensor]:
        """Trained leaves that the optimizer lets rest at this step;
        once let go, never frozen again.
        """
        return [leaf.tensor for _, leaf in self._trained_leaves if step < leaf.rule.frozen_until]

    def follow(self, step: int) -> None:
        """Move the followers on what lies on this rank: teacher += (1 - momentum) (student -
        teacher).

        No communication.
        """
        move_followers(self.objective, step, lambda p: local(p.detach()))

    def reshard(self) -> None:
        """After a forward pass without a backward pass: back to the state between two steps."""

    def totals(self, shared: Tensor, own: Tensor) -> tuple[list[float], list[float]]:
        """In one message: the sums of `shared` over `data`, and of `own` over `all`."""
        with PHASES.collective():  # a device is waited for where its numbers are read
            together = self.all.sum(torch.cat([shared * self.speaks, own])).tolist()
        return together[: len(shared)], together[len(shared) :]

    @torch.no_grad()
    def drifted(self) -> list[str]:
        """The names of parameters of which ranks that should hold the same hold different bits; the
        same list on every rank.
        """
        leaves = [leaf for leaf in self.leaves() if leaf.copies > 1]
        if not leaves:
            return []
        parts = torch.tensor([part_number(leaf) for leaf in leaves], device=self.device)
        bits = torch.stack([bit_sum(leaf.tensor) for leaf in leaves]).to(self.device)
        both = self.all.gather_plain(torch.stack([parts, bits])[None]).cpu()  # (W, 2, parts)
        part, order = both[:, 0].flatten().sort(stable=True)
        value = both[:, 1].flatten()[order]
        apart = (part[1:] == part[:-1]) & (value[1:] != value[:-1])
        return sorted({leaves[k].name for k in (order[1:][apart] % len(leaves)).tolist()})

    def slices(self, optimizer: torch.optim.Optimizer | None = None) -> Iterator[Slice]:
        """This rank's part of every parameter, of the optimizer's state where one is given, and of
        every buffer: "param/NAME", "KIND/NAME", "buffer/NAME".

        The tensors are the live ones: to read a checkpoint is to write into them, and to call
        `settled`.
        """
        place: Placement | None = getattr(optimizer, "place", None)
        for leaf in self.leaves():
            states = {"param": leaf.tensor}
            if optimizer is not None and leaf.tensor in optimizer.state:
                states |= {k: v for k, v in optimizer.state[leaf.tensor].items() if k != "step"}
            for kind, tensor in states.items():
                at = leaf.place if kind == "param" or place is None else place(leaf, kind)
                yield from slices_at(f"{kind}/{leaf.name}", at, tensor.detach())
        for name, b in self.objective.named_buffers():
            shape = tuple(b.shape)
            at = Place(shape, (whole_box(shape),), self.all.world, self.all.rank)
            yield from slices_at(f"buffer/{name}", at, b)

    def close(self) -> None:
        """At the end: let go of what is held from outside; here nothing is."""


def whole_leaves(
    module: nn.Module, rules: dict[str, Rule], ranks: Ranks | None = None
) -> list[Leaf]:
    """The parameters of a module that lies whole on each of `ranks`: their own leaves."""
    copies, copy = (ranks.world, ranks.rank) if ranks is not None else (1, 0)
    return [
        Leaf(name, tuple(p.shape), rules[name], (whole_box(tuple(p.shape)),), p, copies, copy)
        for name, p in module.named_parameters()
    ]


@torch.no_grad()
def move_followers(objective: Objective, step: int, read: Callable[[Tensor], Tensor]) -> None:
    """Move the followers on what `read` gives of each parameter, views of one layout for both."""
    for f in objective.followers():
        mine, theirs = ([read(p) for p in part.parameters()] for part in (f.teacher, f.student))
        torch._foreach_lerp_(mine, theirs, 1 - f.momentum(step))


def part_number(leaf: Leaf) -> int:
    """63 bits that say which part of which parameter a leaf is: no two of hundreds of thousands are
    alike.
    """
    digest = hashlib.sha256(repr((leaf.name, leaf.boxes)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def bit_sum(t: Tensor) -> Tensor:
    """() int64: the sum of a tensor's elements as whole numbers of their bits."""
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()]
    return t.detach().contiguous().view(whole).sum(dtype=torch.int64)


def square_sum(t: Tensor) -> Tensor:
    """Sum of squares in float64, so that no strategy's order of addition shows in the norm."""
    norm: Tensor = torch.linalg.vector_norm(t, dtype=torch.float64)
    return norm.square()
