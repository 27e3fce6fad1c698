"""From a recipe to live parts: specs become modules, readers and batches."""

from dataclasses import fields
from typing import Any

import torch
from torch import nn

from vtx_scale.blocks.norm import BatchNorm
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.loader import Batches, InOrder
from vtx_scale.distributed.ranks import Ranks
from vtx_scale.launch.datasets import DataSet, order_of
from vtx_scale.specs.imports import import_object
from vtx_scale.specs.run import Data, Run


def build_objective(run: Run, dtype: torch.dtype, ranks: Any = None) -> nn.Module:
    """The objective on the meta device."""
    with torch.device("meta"):
        objective = import_object(type(run.objective).build)(run.objective, ranks or Ranks())
    objective.to(dtype)
    objective.micro_batch, objective.tokenizer = run.system.micro_batch, run.data.tokenizer
    objective.seed, objective.steps, objective.augment = run.seed, run.steps, run.data.augment
    check_data(run.data, objective)
    if ranks is not None:  # a training, which alone takes statistics of a batch
        check_micro_batch(run, objective, ranks.world)
    return objective


def check_data(data: Data, objective: Any) -> None:
    """Raises UserError for what the objective would leave out in silence."""
    picture = ("crop", "ratio", "zoom", "spread", "flip", "bicubic", "centre", "tokenizer")
    if objective.heeds is not None:
        asked = [f.name for f in fields(data) if f.name in picture and f.name not in objective.heeds
                 and getattr(data, f.name) != f.default]
        if asked:
            raise UserError(f"data.{asked[0]} is not for {type(objective.spec).__name__}, which cuts pictures and texts in its "
                            "own way: leave it out.")
    augment = data.augment
    made = {"no": (), "pictures": ("randaug_",), "all": ("",)}[objective.augments]
    asked = [f.name for f in fields(augment) if getattr(augment, f.name) != f.default and not f.name.startswith(made)]
    if asked:
        raise UserError(f"data.augment.{asked[0]} is not for {type(objective.spec).__name__}: leave it out.")


def check_micro_batch(run: Run, objective: nn.Module, world: int) -> None:
    """Raises UserError where batch statistics are to be taken of less than a batch."""
    micro, share = run.system.micro_batch, -(-run.global_batch // world)
    trained = any(isinstance(m, BatchNorm) and m.weight.requires_grad for m in objective.modules())
    if micro is not None and micro < share and trained:
        raise UserError(f"system.micro_batch={micro} is less than a rank's {share} slots, but this model's batch norms are "
                        "over the whole batch: leave it out, use more ranks, or set system.recompute=true to save memory.")


def reader_of(run: Run, train: bool) -> Any:
    return import_object(type(run.objective).build).reader(run.objective, run.data, train)


def train_batches(run: Run, data: DataSet, rank: int, world: int) -> Batches:
    return Batches(data.index, order_of(run, data.index), reader_of(run, True), run.global_batch, rank, world, run.seed)


def eval_batches(run: Run, data: DataSet, rank: int = 0, world: int = 1, size: int = 64) -> tuple[Batches, int]:
    """Every validation sample once over all ranks, in tar order; and the number of batches, the same on every rank.

    size: slots of a rank in a batch.
    """
    n, whole = data.index.n, size * world
    return Batches(data.index, InOrder(n), reader_of(run, False), whole, rank, world, run.seed), -(-n // whole)
