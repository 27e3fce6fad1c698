"""A training in which some parameters get no gradient, in whole steps and in micro-batches."""

from pathlib import Path
from typing import Any

import torch

from tests import slow
from tests.ranks import on_ranks
from tests.runs import COLOUR, log_of, smoke
from vtx_scale.launch import override, recipes, worker
from vtx_scale.launch.prepare import prepare_folder, refuse
from vtx_scale.specs.imports import import_object


def rank_with_gaps(recipe: dict, folder: Path, paths: list[str]) -> int:
    """The worker on a rank; the first layer gets no gradient in every second step, and in the
    others none from every second micro-batch.
    """
    recipes.let_import(paths)
    run = override.from_dict(recipe)
    objective: Any = import_object(run.objective.build)
    net: Any = import_object("average_colour:Net")
    plain, gap = objective.forward, [False]

    def forward(self: Any, batch: Any, step: int = 0) -> Any:
        if not batch.slot.is_meta:
            gap[0] = step % 2 == 1 or batch.slot[0].item() % 8 == 4
        return plain(self, batch, step)

    def layers(self: Any, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.first(x))
        return self.last(hidden.detach() if gap[0] else hidden)

    objective.forward, net.forward = forward, layers
    return worker.work(run, folder)


def train_with_gaps(folder: Path, world: int, strategy: str, *keys: str) -> None:
    """Six steps of four micro-batches on all ranks, by an optimizer without a memory: one for which
    no gradient is one of zeros.
    """
    slow.must_be_marked()
    plain = ("steps=6", "optim.kind=sgd", "optim.betas=(0.0, 0.999)", "optim.decay=0")
    micro = "system.micro_batch=4"  # of sixteen slots: even ones are even on two ranks too
    run = smoke(f"system.strategy={strategy}", micro, *plain, *keys, recipe=COLOUR)
    prepare_folder(run, folder, refuse(run, folder, world))
    codes = on_ranks(world, rank_with_gaps, override.to_dict(run), folder, recipes.STRANGERS)
    assert codes == [0] * world, (codes, log_of(folder))
