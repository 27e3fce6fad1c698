"""What a run consists of on one rank, built and then restored from its newest checkpoint."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from vtx_scale.blocks.rules import initial_values
from vtx_scale.data_pipeline.batches import Batches
from vtx_scale.data_pipeline.objects import AnyPath
from vtx_scale.data_pipeline.state import segments_of
from vtx_scale.distributed.phases import PHASES
from vtx_scale.launch import (
    amendments,
    decided,
    decisions,
    run_folder,
)
from vtx_scale.launch.amendments import Plan
from vtx_scale.launch.build import build_objective, train_batches
from vtx_scale.launch.datasets import training_data
from vtx_scale.launch.decided import Decision
from vtx_scale.launch.initial import load_initial
from vtx_scale.launch.outside import check_weights
from vtx_scale.launch.paths import checkpoints_of
from vtx_scale.launch.recover import recovered
from vtx_scale.launch.restore import restore
from vtx_scale.launch.retention import stays
from vtx_scale.launch.room import check_room
from vtx_scale.launch.stopping import Stopping
from vtx_scale.objectives.base import Objective
from vtx_scale.specs.run import Run
from vtx_scale.strategies.apply import apply, strategy_of
from vtx_scale.strategies.base import Base
from vtx_scale.trainer.average import Average, average_of
from vtx_scale.trainer.control import Control
from vtx_scale.trainer.guard import Window
from vtx_scale.trainer.init import initialise_slices
from vtx_scale.trainer.lines import truncate_logs_after
from vtx_scale.trainer.loop import Progress
from vtx_scale.trainer.optim import optimizer_of
from vtx_scale.trainer.output import (
    Ledger,
    say,
    silent,
)
from vtx_scale.trainer.precision import Precision, precision_of


@dataclass
class Parts:
    """Everything of a run that lives on this rank."""

    run: Run
    folder: AnyPath
    world: int
    control: Control
    objective: Objective
    strategy: Base
    optimizer: torch.optim.Optimizer
    batches: Batches
    precision: Precision
    ledger: Ledger
    guard: Window
    average: Average
    stopping: Stopping
    progress: Progress = field(default_factory=Progress)
    decisions: list[Decision] = field(default_factory=list)
    plan: Plan | None = None  # what amendments make of the recipe
    hash: str = ""  # of run.json as it was at the start: a file may go away while the run goes on
    stays: Callable[[list[int]], set[int]] = lambda there: set()  # see launch/retention.py
    epoch: int = 0  # of the lease under which this start writes; 0: nobody took one

    def state(self) -> dict[str, Any]:
        """What goes into a checkpoint's manifest."""
        progress = self.progress
        return {
            "applied": progress.applied,
            "samples": progress.samples,
            "frozen": progress.frozen,
            "scale": self.precision.scale,
            "good": self.precision.good_steps,
            "strategy": self.strategy.name,
            "world": self.world,
            "data": self.batches.state(progress.position),
            # a copy: a save is written while the next step counts
            **({"sources": [*progress.sources]} if progress.sources else {}),
            "decisions": [d.name for d in self.decisions],
            **({"guard": self.guard.state()} if self.run.guard.factor else {}),
            **({"stop": self.stopping.patience.state()} if self.run.stop.patience else {}),
            "hash": self.hash,
            "versions": run_folder.versions(),
        }


def assemble(
    run: Run, folder: AnyPath, device: torch.device, world: int, control: Control
) -> Parts:
    """Model, strategy, optimizer and batches, the model with its keyed initial values."""
    precision = precision_of(run.system, device)
    strategy = strategy_of(run.system, world, device, precision.compute)
    objective = build_objective(run, precision.weights, strategy.data)
    check_room(run, objective, world, device, precision)
    apply(objective, strategy, run.system)
    initialise_slices(strategy, initial_values(objective), run.seed)
    optimizer = optimizer_of(strategy.leaves(), run.optim, run.seed)
    # each node has a disk of its own
    heard = say if os.environ.get("LOCAL_RANK", "0") == "0" else silent
    ranks, data = strategy.data, training_data(run)
    batches = train_batches(run, data, ranks.rank, ranks.world, heard)
    about = run_folder.read(folder)
    return Parts(
        run=run,
        folder=folder,
        world=world,
        control=control,
        objective=objective,
        strategy=strategy,
        optimizer=optimizer,
        batches=batches,
        precision=precision,
        ledger=Ledger(folder),
        guard=Window(run.guard),
        average=average_of(optimizer, run.optim.average),
        stopping=Stopping(run, folder, strategy),
        hash=about["hash"],
    )


def restore_or_initialise(parts: Parts) -> bool:
    """Go on from the newest checkpoint, or fill in what comes from other runs;
    whether there was a checkpoint.
    """
    folder, strategy, progress = parts.folder, parts.strategy, parts.progress
    parts.decisions = decisions.shared(folder, strategy.all, strategy.device)
    parts.stays = stays(parts.run, folder, [d.name for d in parts.decisions])
    if strategy.all.rank == 0:
        decisions.sweep(folder, parts.decisions)
    memory = (
        recovered(
            checkpoints_of(folder),
            list(strategy.slices(parts.optimizer)),
            strategy.all.rank,
            epoch=parts.epoch,
            digest=parts.hash,
            decisions=parts.decisions,
        )
        if parts.run.checkpoint.memory and parts.world > 1
        else None
    )
    manifest = restore(
        folder,
        parts.run,
        parts.batches.fingerprint,
        strategy,
        parts.optimizer,
        progress,
        parts.precision,
        memory,
    )
    if manifest is None:
        if strategy.all.rank == 0:
            check_weights(parts.run, run_folder.outside_of(folder))
        load_initial(parts.run, strategy, say)
        parts.average.begin()
    else:
        decided.check_known(manifest, parts.decisions, folder)
        parts.guard.load(manifest.get("guard", []))
        parts.stopping.load(manifest, progress.step)
    go_on(parts, manifest or {})
    if strategy.all.rank == 0:
        truncate_logs_after(folder, progress.step)
        decisions.tell(folder, parts.decisions)
    if parts.world > 1:
        with PHASES.collective():
            dist.barrier()
    return manifest is not None


def go_on(parts: Parts, manifest: dict[str, Any]) -> None:
    """Where the order goes on, and what holds from which step on.

    Raises UserError for amendments that cannot be followed, on every rank alike.
    """
    batches, progress = parts.batches, parts.progress
    batches.go_on(progress.step, progress.position, decided.jumps(parts.decisions))
    parts.plan = amendments.plan(parts.run, parts.decisions)
    if (order := batches.mix) is not None:
        known, forked = manifest.get("data", {}), run_folder.read(parts.folder).get("forks")
        order.set_segments(
            amendments.segments(
                parts.plan,
                segments_of(known),
                progress.step,
                known.get("position", 0),
                batches.start,
                bool(forked),
            )
        )
