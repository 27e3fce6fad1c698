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
    """The worker on a rank; the first layer gets no gradient in every second step, and none from
    the last micro-batch of the others.
    """
    recipes.let_import(paths)
    run = override.from_dict(recipe)
    objective: Any = import_object(run.objective.build)
    net: Any = import_object("average_colour:Net")
    plain, calls = objective.forward, {"step": -1, "count": 0}

    def forward(self: Any, batch: Any, step: int = 0) -> Any:
        calls.update(step=step, count=calls["count"] + 1 if calls["step"] == step else 1)
        return plain(self, batch, step)

    def layers(self: Any, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.first(x))
        cut = calls["step"] % 2 or calls["count"] == 2
        return self.last(hidden.detach() if cut else hidden)

    objective.forward, net.forward = forward, layers
    return worker.work(run, folder)


def train_with_gaps(folder: Path, world: int, strategy: str, *keys: str) -> None:
    """Six steps of sixteen samples, two micro-batches a rank, by an optimizer without a memory: one
    for which no gradient is one of zeros.
    """
    slow.must_be_marked()
    plain = ("steps=6", "optim.kind=sgd", "optim.betas=(0.0, 0.999)", "optim.decay=0")
    micro = f"system.micro_batch={8 // world}"
    run = smoke(f"system.strategy={strategy}", micro, *plain, *keys, recipe=COLOUR)
    prepare_folder(run, folder, refuse(run, folder, world))
    codes = on_ranks(world, rank_with_gaps, override.to_dict(run), folder, recipes.STRANGERS)
    assert codes == [0] * world, (codes, log_of(folder))
