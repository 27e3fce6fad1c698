"""`vtx_scale.open_run`: a trained model in this process, ready to be used."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vtx_scale.checkpoints.read import Tensors, load, newest
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.launch.build import build_objective
from vtx_scale.launch.run_folder import recipe_of
from vtx_scale.objectives.base import Objective
from vtx_scale.specs.run import Run
from vtx_scale.strategies.single import Single
from vtx_scale.trainer.precision import precision_of


@dataclass(frozen=True)
class OpenRun:
    """A finished or running training, ready to be used:
    `probes["encode_image"](uint8 (N, H, W, 3))`.

    folder, recipe: the run's. step: of the checkpoint, in finished steps. model: the objective, on
    the CPU, in evaluation mode.
    """

    folder: Path
    recipe: Run
    step: int
    model: Objective

    @property
    def probes(self) -> dict[str, Callable[..., Any]]:
        """What the model can be asked, by name; answers lie on the CPU. docs/objectives.md lists
        what each objective has, with shapes.

        A probe raises UserError for what it does not take.
        """
        return self.model.probes


def open_run(folder: str | Path) -> OpenRun:
    """The newest whole checkpoint of a run folder, in this process, on the CPU; of any strategy and
    world. A training that goes on is not disturbed.

    Raises UserError where the folder is no run folder or has no whole checkpoint.
    """
    folder = Path(folder)
    run = recipe_of(folder)
    found = newest(folder / "checkpoints")
    if found is None:
        raise UserError(f"{folder} has no whole checkpoint: run its training first.")
    path, manifest = found
    device = torch.device("cpu")
    objective = build_objective(run, precision_of(run.system, device).weights)
    strategy = Single(device)
    strategy.prepare(objective)
    tensors = Tensors(path, manifest)
    wanted = {s.key for s in strategy.slices()}
    tensors.shapes = {k: v for k, v in tensors.shapes.items() if k in wanted}
    load(strategy.slices(), tensors)
    objective.eval()
    return OpenRun(folder, run, manifest["step"], objective)
