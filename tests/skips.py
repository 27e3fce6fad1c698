"""Runs in which chosen steps are not finite, and the checkpoints of a step."""

from pathlib import Path
from typing import Any

import torch

from tests import slow
from tests.ranks import on_ranks
from tests.runs import COLOUR, lines, log_of, smoke
from vtx_scale.checkpoints.read import Tensors, verify
from vtx_scale.launch import override, recipes, worker
from vtx_scale.launch.paths import checkpoints_of
from vtx_scale.launch.prepare import prepare_folder, refuse
from vtx_scale.specs.imports import import_object


def poisoned(recipe: dict, folder: Path, paths: list[str], steps: list[int]) -> int:
    """The worker on a rank; in these steps, counted from 1, the last rank's loss is not finite."""
    recipes.let_import(paths)
    run = override.from_dict(recipe)
    objective: Any = import_object(run.objective.build)
    plain = objective.forward

    def forward(self: Any, batch: Any, step: int = 0) -> Any:
        loss, seen = plain(self, batch, step)
        ranks = self.context.ranks
        bad = step + 1 in steps and ranks.rank == ranks.world - 1
        return loss * (float("nan") if bad else 1.0), seen

    objective.forward = forward
    return worker.work(run, folder)


def train_poisoned(
    folder: Path,
    world: int,
    strategy: str,
    steps: list[int],
    *keys: str,
    recipe: str = COLOUR,
    code: int = 0,
) -> None:
    slow.must_be_marked()
    run = smoke(f"system.strategy={strategy}", *keys, recipe=recipe)
    prepare_folder(run, folder, refuse(run, folder, world))
    arguments = (override.to_dict(run), folder, recipes.STRANGERS, steps)
    codes = on_ranks(world, poisoned, *arguments)
    assert codes == [code] * world, (codes, log_of(folder))


def saved(folder: Path, step: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Every tensor of the checkpoint at a step, and its manifest."""
    storage = checkpoints_of(folder)
    manifest = verify(storage, step)
    stored = Tensors(storage, manifest)
    return {k: stored.tensor(k) for k in stored.keys()}, manifest


def skips(folder: Path) -> list[int]:
    """The steps that the ledger says were skipped, a number for each line."""
    ledger = folder / "ledger.jsonl"
    return [r["step"] for r in lines(ledger) if r["kind"] == "skip"] if ledger.exists() else []
