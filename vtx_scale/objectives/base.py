"""What an objective is: a reader of samples, a loss, its units, its parameter rules, its probes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vtx_scale.blocks.random import step_key
from vtx_scale.blocks.rules import Rules
from vtx_scale.blocks.slots import VIEWS, SlotContext
from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.data_pipeline.loader import Reader
from vtx_scale.distributed.ranks import Ranks
from vtx_scale.specs.objective import ObjectiveSpec
from vtx_scale.specs.run import Augment, Data

__all__ = ["Context", "Follower", "Objective"]


@torch.no_grad()
def run_here(function: Callable[..., Tensor], *rows: Tensor) -> Tensor:
    """`Context.run_probe` of an objective that no strategy has prepared:
    it lies whole where its rows are.
    """
    return function(*rows).float().cpu()


@dataclass
class Context:
    """What a run tells its objective, once, at construction.

    ranks: sums and gathers over the ranks that share a batch. seed, steps: the run's. micro_batch:
    slots at once, None for all; an objective that is not separable cuts its batch itself.
    tokenizer, augment: the recipe's `data`.
    run_probe(function, *rows): function(*rows) without gradient, evaluated where a sharded model
    has its parameters, float32 on the CPU; the strategy fills it. What a probe does.
    """

    ranks: Ranks = field(default_factory=Ranks)
    seed: int = 0
    steps: int = 1
    micro_batch: int | None = None
    tokenizer: str = "bytes"
    augment: Augment = field(default_factory=Augment)
    run_probe: Callable[..., Tensor] = run_here

    def slots(self, batch: Batch, step: int, views: int = 1, call: str = "") -> SlotContext:
        """What networks in training are told of batch rows of which each slot stands `views` times,
        view after view.
        """
        device = batch.valid.device
        view = torch.arange(views, device=device)
        number = (batch.slot[:, None] * VIEWS + view).flatten()
        valid = batch.valid.repeat_interleave(views)
        return SlotContext(valid, number, step_key(self.seed, step, device), self.ranks, call)


@dataclass(frozen=True)
class Follower:
    """An average of another module's parameters, moved after each step that counted and never
    by the optimizer.

    Its buffers (running statistics) are its own.

    teacher, student: submodules of one layout; momentum(step) is the share of its own value
    that the teacher keeps. The teacher starts from the student's values, and its units belong
    in `Objective.units` too.
    """

    teacher: nn.Module
    student: nn.Module
    momentum: Callable[[int], float]


class Objective(nn.Module):
    """Built on the meta device: `__init__(spec, context)` depends on these alone and
    computes no values.

    Five members make one: `reader`, `forward`, `units`, `parameter_rules` and `probes`; `count`,
    `prepare`, `followers` and `update_buffers` where they differ from what stands here. What is a
    fact about the configuration (used fields of `data`, augmentations, pretrained parts) stands in
    the spec. Trained parameters have at least one dimension (a scale has shape (1,)), because FSDP
    shards no scalars. Nothing here writes to a parameter.
    """

    probes: dict[str, Callable[..., Any]]
    parameter_rules: Rules

    def __init__(self, spec: ObjectiveSpec, context: Context) -> None:
        super().__init__()
        self.spec: ObjectiveSpec = spec
        self.context = context

    @staticmethod
    def reader(spec: Any, data: Data, train: bool) -> Reader:
        """What turns a sample's bytes into arrays, in the loader's workers: picklable.

        train: with augmentation.
        """
        raise NotImplementedError("an objective needs a reader")

    def forward(self, batch: Batch, step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the loss over this rank's valid slots, and numbers to log by name.

        The trainer divides the sum by the global count; what is logged are means over these slots,
        which it averages over micro-batches and ranks.
        """
        raise NotImplementedError("an objective needs a forward")

    def units(self) -> Iterable[nn.Module]:
        """Blocks that are sharded, compiled and recomputed as one."""
        raise NotImplementedError("an objective needs units")

    def count(self, batch: Batch) -> Tensor:
        """() what the summed loss is divided by, before the ranks are added up: valid slots."""
        return batch.valid.sum()

    def prepare(self, batch: Batch, step: int) -> Batch:
        """What is done once a step to this rank's whole batch before it is cut into micro-batches
        (mixing of samples).
        """
        return batch

    def followers(self) -> Iterable[Follower]:
        """Modules that follow others; the strategy moves them on its local shards."""
        return ()

    def call(self, function: Callable[..., Tensor], *rows: Tensor) -> Tensor:
        """function(*rows): a method of the whole, so that a strategy can put its
        hooks around it.
        """
        return function(*rows)

    def update_buffers(self, step: int) -> dict[str, Tensor]:
        """What else moves after a step that counted (a centre);
        what to log of it, the same on every rank.
        """
        return {}
