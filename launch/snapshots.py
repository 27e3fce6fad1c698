"""Whether a run makes snapshots in memory, and what they are written with."""

import os
from collections.abc import Callable
from pathlib import Path

import torch

from vtx_scale.checkpoints.memory import Snapshots
from vtx_scale.data_pipeline.publish import machine
from vtx_scale.distributed.exchange import all_json
from vtx_scale.launch.memory import VARIABLE
from vtx_scale.specs.run import Run
from vtx_scale.strategies.base import Base

SHARE = 4  # of the time that ranks wait for one another in a step, what they wait in a snapshot


def folder_in_memory() -> Path | None:
    """Where this machine keeps snapshots; None where no launcher gives a place."""
    name = os.environ.get(VARIABLE, "")
    return Path(name) if name and Path(name).is_dir() else None


def node_name() -> str:
    """Of this machine, as its ranks share one memory."""
    return f"{machine()} {os.environ.get('NODE_RANK', '0')} {os.environ.get(VARIABLE, '')}"


def snapshots_of(
    run: Run,
    strategy: Base,
    optimizer: torch.optim.Optimizer,
    attempt: str,
    epoch: int,
    say: Callable[[str], None],
    before: Callable[[], object],
) -> Snapshots | None:
    """What makes them, None where the run makes none; why it is not as asked is said. All ranks
    call it. epoch: of the lease. before: see `Snapshots`.
    """
    every, ranks = run.checkpoint.memory, strategy.all
    if not every:
        return None
    if ranks.world == 1:
        say(f"checkpoint.memory={every}: off, one process has nobody to go on after it")
        return None
    folder = folder_in_memory()
    if not all(all_json(folder is not None)) or folder is None:
        say(f"checkpoint.memory={every}: off, no launcher of vtx keeps memory for these ranks")
        return None
    snapshots = Snapshots(
        folder,
        node_name(),
        ranks,
        attempt,
        strategy.slices(optimizer),
        epoch=epoch,
        timeout=run.system.timeout / SHARE,
        before=before,
    )
    if snapshots.room:
        say(f"checkpoint.memory={every}: off, {snapshots.room}")
        return None
    if len(set(snapshots.nodes)) == 1:
        say(
            f"checkpoint.memory={every}: snapshots on this machine alone: they survive its ranks, "
            "and not the machine"
        )
    return snapshots
