"""`vtx_scale.open_run`: a trained model in this process, ready to be used."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vtx_scale.checkpoints.read import Opened, load
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.objects import AnyPath
from vtx_scale.launch.build import build_objective
from vtx_scale.launch.places import place_at
from vtx_scale.launch.process import device_of
from vtx_scale.launch.reading import Reading, reading_of
from vtx_scale.launch.restore import read_common
from vtx_scale.launch.run_folder import recipe_of
from vtx_scale.launch.several import meet
from vtx_scale.objectives.base import Objective
from vtx_scale.specs.run import Run, System
from vtx_scale.strategies.apply import apply, strategy_of
from vtx_scale.strategies.base import Base
from vtx_scale.trainer.precision import Precision, precision_of


@dataclass(frozen=True)
class OpenRun:
    """A finished or running training, ready to be used:
    `probes["encode_image"](uint8 (N, H, W, 3))`.

    folder, recipe: the run's. step: of the checkpoint, in finished steps. model: the objective, on
    the device that was asked for, in evaluation mode.
    """

    folder: AnyPath
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


def open_run(folder: str | AnyPath, device: str = "cpu", precision: str | None = None) -> OpenRun:
    """The newest whole checkpoint of a run folder, in this process; of any strategy and world. A
    training that goes on is not disturbed.

    folder: of this machine, or s3://bucket/run.

    device: "cpu", "cuda", or "auto" for a GPU where there is one. precision: of what the probes
    compute, as `system.precision` names it ("fp32", "bf16", "fp16", "fp64", "auto"); None for the
    type that the run's parameters have. Raises UserError where the folder is no run folder or has
    no whole checkpoint, for a value that is none, and for a GPU where there is none.
    """
    keys = [f"system.device={device}"]
    reading = reading_of([*keys, *([f"system.precision={precision}"] if precision else [])])
    folder = place_at(folder) if isinstance(folder, str | Path) else folder
    run = recipe_of(folder)
    at, computed = place_of(reading, run)
    world = meet(at)
    # several ranks have a part of the parameters each; products are cast by `cast_probes`
    system = System(strategy="single" if world == 1 else "fsdp")
    strategy = strategy_of(system, world, at, None)
    objective = build_objective(run, computed.weights, strategy.data if world > 1 else None)
    apply(objective, strategy, system)
    objective.context.run_probe = cast_probes(strategy, computed)
    step = load_newest(folder, strategy)
    objective.eval()
    return OpenRun(folder, run, step, objective)


def load_newest(folder: AnyPath, strategy: Base) -> int:
    """The newest whole checkpoint into the strategy's slices, the same on every rank; its step.
    Where the run keeps an average of its weights, that.

    Raises UserError where there is none.
    """

    def take(checkpoint: Opened) -> int:
        tensors = checkpoint.tensors()
        used = [
            replace(s, key=tensors.weight(s.key.removeprefix("param/")))
            if s.key.startswith("param/")
            else s
            for s in strategy.slices()
        ]
        wanted = {s.key for s in used}
        tensors.shapes = {k: v for k, v in tensors.shapes.items() if k in wanted}
        load(used, tensors)
        strategy.settled()
        return int(checkpoint.manifest["step"])

    step = read_common(folder, strategy, take)
    if step is None:
        raise UserError(f"{folder} has no whole checkpoint: run its training first.")
    return step


def place_of(reading: Reading, run: Run) -> tuple[torch.device, Precision]:
    """The device, and how it computes. Raises UserError for a GPU where there is none."""
    device = torch.device("cpu")
    if reading.device != "cpu":
        device = device_of(System(device=reading.device, threads=torch.get_num_threads()))
    if reading.precision is None:  # as an evaluation in the loop: no mixed precision
        return device, replace(precision_of(run.system, torch.device("cpu")), compute=None)
    return device, precision_of(replace(run.system, precision=reading.precision), device)


def cast_probes(strategy: Base, precision: Precision) -> Callable[..., torch.Tensor]:
    """`Context.run_probe` whose products are in the precision."""

    def run_probe(function: Callable[..., torch.Tensor], *rows: torch.Tensor) -> torch.Tensor:
        with precision.cast(strategy.device):
            return strategy.run_probe(function, *rows)

    return run_probe
