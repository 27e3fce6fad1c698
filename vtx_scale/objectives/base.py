"""What an objective is: a reader of samples, a loss, its units, its parameter rules, its probes."""

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vtx_scale.blocks.random import step_key
from vtx_scale.blocks.rules import Rules
from vtx_scale.blocks.slots import VIEWS, SlotContext
from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.data_pipeline.batches import Reader
from vtx_scale.distributed.ranks import Ranks
from vtx_scale.objectives.contract import check_losses, explained
from vtx_scale.specs.objective import ObjectiveSpec
from vtx_scale.specs.run import Augment, Data

__all__ = ["Context", "Follower", "Objective", "sources"]


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
    slots of this rank at once, None for all; an objective that is not separable cuts its batch
    itself. contrastive: whether a loss over pairs gathers the other ranks' features or lets them go
    round. tokenizer, augment: the recipe's `data`, the tokenizer by its name.
    run_probe(function, *rows): function(*rows) without gradient, evaluated where a sharded model
    has its parameters, float32 on the CPU; the strategy fills it. What a probe does.
    """

    ranks: Ranks = field(default_factory=Ranks)
    seed: int = 0
    steps: int = 1
    micro_batch: int | None = None
    contrastive: Literal["gather", "ring"] = "gather"
    tokenizer: str = "bytes"
    augment: Augment = field(default_factory=Augment)
    run_probe: Callable[..., Tensor] = run_here

    def slots(self, batch: Batch, step: int, views: int = 1, call: str = "") -> SlotContext:
        """What networks in training are told of batch rows of which each slot stands `views` times,
        view after view: n views rows for n slots.

        step: of the run, from 0; it keys what is drawn. call: names the pass where a network runs
        more than once in a step.
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

    Its buffers (running statistics) are its own. DINO's teacher is one (Caron et al. 2021).

    teacher, student: submodules of one layout; momentum(step), in [0, 1], is the share of its own
    value that the teacher keeps. The teacher starts from the student's values, and its units belong
    in `Objective.units` too.
    """

    teacher: nn.Module
    student: nn.Module
    momentum: Callable[[int], float]


class Objective(nn.Module):
    """Built on the meta device: `__init__(spec, context)` depends on these alone and
    computes no values. Values that it loads would be lost: they come from `parameter_rules`, from
    `init.from`, or from another run, of a part that the spec names in `pretrained`.

    Five members make one: `reader`, `forward`, `units`, `parameter_rules` and `probes`; `count`,
    `prepare`, `followers`, `update_buffers` and `codes_reader` where they differ from what stands
    here. What is a fact about the configuration (used fields of `data`, augmentations, pretrained
    parts) stands in the spec. Parameters have at least one dimension (a scale has shape (1,)),
    because FSDP shards no scalars: one without is refused under every strategy. Nothing here writes
    to a parameter.

    probes: what evaluators and users may ask, by name; docs/objectives.md lists names and shapes.
    parameter_rules: where each parameter and buffer starts, and how it is trained, a table of
    `vtx_scale.blocks.rules.Rule`.
    """

    probes: dict[str, Callable[..., Any]]
    parameter_rules: Rules
    checked = False  # whether a forward pass has given what it must

    def __init__(self, spec: ObjectiveSpec, context: Context) -> None:
        super().__init__()
        self.spec: ObjectiveSpec = spec
        self.context = context

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`forward` with its hooks. The first time that it has a batch it raises UserError where it
        does not give what it must, or where a line outside of this package fails.
        """
        # zero3 runs probes through here, with rows in place of a batch
        if self.checked or not (args and isinstance(args[0], Batch)):
            return super().__call__(*args, **kwargs)
        who = type(self).__name__.removeprefix("FSDP")
        strange = not self.spec.build.startswith("vtx_scale.")
        values = not args[0].valid.is_meta
        with explained(who) if strange and values else contextlib.nullcontext():
            found = super().__call__(*args, **kwargs)
        check_losses(who, found)
        self.checked = True
        return found

    @staticmethod
    def reader(spec: Any, data: Data, train: bool) -> Reader:
        """What turns a sample's bytes into arrays, in the loader's workers: picklable.

        spec: of the class that names this objective. data: the recipe's. train: with augmentation;
        else as an evaluation sees a sample.
        """
        raise NotImplementedError("an objective needs a reader")

    @staticmethod
    def codes_reader(spec: Any, data: Data, train: bool) -> Reader:
        """As `reader`, of shards that hold codes in place of pictures; for an objective whose spec
        says `coded_by`.
        """
        raise NotImplementedError("an objective whose spec says coded_by needs a codes_reader")

    def forward(self, batch: Batch, step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """() the sum of the loss over this rank's valid slots, and tensors of one number each to
        log, by name.

        batch: this rank's on the device, or a part of it; what is masked weighs nothing. step: of
        the run, from 0. The trainer divides the sum by the global count; what is logged are means
        over these slots, which it averages over micro-batches and ranks. Logged names are the same
        on every rank, in every micro-batch and at every step, in one order; those that the trainer
        has for numbers of its own (`contract.RESERVED`: loss, lr, step, samples ...) are refused.
        """
        raise NotImplementedError("an objective needs a forward")

    def units(self) -> Iterable[nn.Module]:
        """Blocks, submodules of this one, that are sharded, compiled and recomputed as one.

        What lies outside of them is sharded with the whole.
        """
        raise NotImplementedError("an objective needs units")

    def count(self, batch: Batch) -> Tensor:
        """() what the summed loss is divided by, before the ranks are added up: valid slots."""
        return batch.valid.sum()

    def prepare(self, batch: Batch, step: int) -> Batch:
        """What is done once a step to this rank's whole batch before it is cut into micro-batches
        (mixing of samples); the batch that `forward` gets.
        """
        return batch

    def followers(self) -> Iterable[Follower]:
        """Modules that follow others; the strategy moves them on its local shards, after each step
        that counted.
        """
        return ()

    def call(self, function: Callable[..., Tensor], *rows: Tensor) -> Tensor:
        """function(*rows): a method of the whole, so that a strategy can put its
        hooks around it.
        """
        return function(*rows)

    def update_buffers(self, step: int) -> dict[str, Tensor]:
        """What else moves after a step that counted (a centre); what to log of it by name, one
        number each, the same on every rank.

        step: the one that is done, from 0.
        """
        return {}


def sources(objective: Objective) -> dict[str, str]:
    """Name of a follower's parameter -> name of the one that it follows,
    whose initial values it shares.
    """
    names = {id(p): n for n, p in objective.named_parameters()}
    return {
        names[id(t)]: names[id(s)]
        for f in objective.followers()
        for t, s in zip(f.teacher.parameters(), f.student.parameters(), strict=True)
    }
