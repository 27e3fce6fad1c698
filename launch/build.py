"""From a recipe to live parts: specs become modules, readers and batches."""

from collections.abc import Callable
from dataclasses import replace

import torch

from vtx_scale.blocks.cuts import cut_fault, cut_layers
from vtx_scale.data_pipeline.batches import Batches, InOrder, Reader
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.members import Placed
from vtx_scale.distributed.ranks import Ranks
from vtx_scale.launch.caching import caching_of
from vtx_scale.launch.checks import check_micro_batch
from vtx_scale.launch.datasets import DataSet, coding, order_of
from vtx_scale.objectives.base import Context, Objective
from vtx_scale.specs.imports import import_object
from vtx_scale.specs.run import Run
from vtx_scale.trainer.output import silent


def build_objective(run: Run, dtype: torch.dtype, ranks: Ranks | None = None) -> Objective:
    """The objective on the meta device.

    ranks: of a training, which alone takes statistics of a batch.

    Raises UserError where its class cannot be imported, or a batch would be cut that must not be.
    """
    if ranks is not None:
        check_micro_batch(run, ranks.world)
    context = Context(
        ranks=ranks or Ranks(),
        seed=run.seed,
        steps=run.steps,
        micro_batch=run.system.micro_batch if ranks is not None else None,
        contrastive=run.system.contrastive if ranks is not None else "gather",
        tokenizer=run.data.tokenizer,
        augment=run.data.augment,
    )
    with torch.device("meta"):
        objective: Objective = import_object(type(run.objective).build)(run.objective, context)
    return objective.to(dtype)


def check_cuts(run: Run, axis: int, say: Callable[[str], None]) -> None:
    """Whether so many ranks can share the blocks of a run's networks; where none of its blocks can
    be cut, a line on that.

    Raises UserError where they do not divide heads or hidden units.
    """
    objective = build_objective(run, torch.float32)
    if (fault := cut_fault(objective, axis)) is not None:
        raise UserError(fault)
    if not cut_layers(objective):
        say(
            f"{run.objective.title()} has no block that {axis} ranks could share: "
            "each of them computes all of it"
        )


def reader_of(run: Run, train: bool, coded: bool = False) -> Reader:
    """What turns the recipe's samples into arrays. train: with augmentation. coded: of shards that
    hold codes in place of pictures.
    """
    kind: type[Objective] = import_object(type(run.objective).build)
    reader = (kind.codes_reader if coded else kind.reader)(run.objective, run.data, train)
    caption, label = run.data.caption, run.data.label
    return Placed(reader, caption, label) if caption or label else reader


def train_batches(
    run: Run, data: DataSet, rank: int, world: int, say: Callable[[str], None] = silent
) -> Batches:
    """A rank's shares of the global batches, in the run's order. say: takes a sentence where the
    node's cache cannot be had or is too small.
    """
    order = order_of(run, *data.indexes)
    reader = reader_of(run, True, coding(run, data) is not None)
    first, *more = data.indexes
    batch, seed = run.global_batch, run.seed
    batches = Batches(first, order, reader, batch, rank, world, seed, tuple(more), data.names)
    return replace(batches, caching=caching_of(run, batches, say))


def eval_batches(
    run: Run, data: DataSet, rank: int = 0, world: int = 1, size: int = 64
) -> tuple[Batches, int]:
    """Every validation sample once over all ranks, in tar order, source by source;
    and the number of batches, the same on every rank.

    size: slots of a rank in a batch.
    """
    n, together = data.n, size * world
    first, *more = data.indexes
    order, reader = InOrder(n), reader_of(run, False, coding(run, data) is not None)
    batches = Batches(
        first, order, reader, together, rank, world, run.seed, tuple(more), data.names
    )
    return replace(batches, caching=caching_of(run, batches, silent)), -(-n // together)
