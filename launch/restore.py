"""Going on where a run's newest checkpoint stands."""

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from vtx_scale.checkpoints.format import Damaged, folder_name, read_manifest, steps
from vtx_scale.checkpoints.read import Opened, Tensors, complete, load, read_newest
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.objects import AnyPath
from vtx_scale.data_pipeline.storage import Storage
from vtx_scale.distributed.ranks import gathered_json
from vtx_scale.launch import run_folder
from vtx_scale.launch.paths import checkpoints_of
from vtx_scale.specs.run import Run
from vtx_scale.strategies.base import Base
from vtx_scale.trainer.lines import written
from vtx_scale.trainer.loop import Progress, due
from vtx_scale.trainer.output import Ledger, say, why
from vtx_scale.trainer.precision import Precision

T = TypeVar("T")


def restore(
    folder: AnyPath,
    run: Run,
    fingerprint: str,
    strategy: Base,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    precision: Precision,
    memory: tuple[Storage, int] | None = None,
) -> dict[str, Any] | None:
    """Load the newest whole checkpoint, the same on every rank; its manifest, None where there is
    none. memory: a snapshot that is newer than those on the disk, and its step.

    Raises UserError where it was made from other data, or cannot be loaded.
    """
    stored, step = memory or (checkpoints_of(folder), common_step(folder, strategy))
    if step < 0:
        return None
    if memory is not None and strategy.all.rank == 0:
        say(f"step {step} comes from memory: the disk has an older one, or none")
    manifest = read_manifest(stored, step)
    data = manifest["data"]
    forked = bool(run_folder.read(folder).get("forks"))
    if data["fingerprint"] != fingerprint and not forked:
        raise UserError(
            f"{folder_name(step)} of {folder} was made from another data set or order "
            f"(fingerprint {data['fingerprint']}, now {fingerprint}): give "
            "data.shards as it was, or train in another folder."
        )
    try:
        load(strategy.slices(optimizer), Tensors(stored, manifest))
    except Damaged as e:  # since it was verified, or of a maker who did not mean well
        raise UserError(
            f"{folder_name(step)} of {folder} cannot be loaded ({e}): move it away to go on from "
            "the one before it."
        ) from e
    strategy.settled()
    progress.step, progress.applied, progress.samples = (
        step,
        manifest["applied"],
        manifest["samples"],
    )
    progress.position = position_of(manifest, run_folder.read(folder), run)
    progress.frozen = manifest.get("frozen", 0)
    progress.sources = list(manifest.get("sources", []))
    precision.scale, precision.good_steps = manifest["scale"], manifest["good"]
    return manifest


TRIES = 8  # checkpoints of a living run that went away between the first rank and the last


def read_common(
    folder: AnyPath, strategy: Base, use: Callable[[Opened], T], say: Callable[[str], None] = print
) -> T | None:
    """What `use` makes of the newest whole checkpoint of a run folder, the same one on every rank;
    None where there is none. `use` may be called again for another checkpoint.

    Raises UserError where a run in it removes them faster than the ranks open them.
    """

    def number(value: int) -> Tensor:
        return torch.tensor([value], dtype=torch.float64, device=strategy.device)

    stored = checkpoints_of(folder)
    for _ in range(TRIES):
        found: tuple[int, T] | None = None
        if strategy.all.rank == 0:
            found = read_newest(stored, lambda c: (c.manifest["step"], use(c)), say)
        first = strategy.all.rank == 0
        step = int(strategy.all.sum(number((found[0] if found else -1) if first else 0)).item())
        if step < 0:
            return None
        if found is None:
            with contextlib.suppress(Damaged, OSError):
                with Opened(stored, step) as checkpoint:
                    found = step, use(checkpoint)
        missed = int(strategy.all.sum(number(found is None)).item())
        if found is not None and not missed:
            return found[1]
    raise UserError(
        f"{folder} loses its checkpoints faster than all ranks can open one: wait for its "
        "training, or give it a higher checkpoint.keep."
    )


def position_of(manifest: dict[str, Any], about: dict[str, Any], run: Run) -> int:
    """Slots that were handed out before a checkpoint; one that does not say it had the batch of
    the recipe that wrote it. about: run.json.
    """
    if (position := manifest["data"].get("position")) is not None:
        return int(position)
    batch = about.get("batches", {}).get(manifest.get("hash"), run.global_batch)
    return int(manifest["step"] * batch)


def common_step(folder: AnyPath, strategy: Base) -> int:
    """The step of the newest whole checkpoint, on every rank; -1 where there is none. Each rank
    reads its share of the files, and one that is damaged for any of them is passed over by all.

    Raises UserError where there are some and none of them is whole.
    """
    stored, ranks = checkpoints_of(folder), strategy.all
    there = list(reversed(steps(stored))) if ranks.rank == 0 else []

    def of_first(value: int) -> int:
        mine = [float(value if ranks.rank == 0 else 0)]
        return int(ranks.sum(torch.tensor(mine, dtype=torch.float64, device=strategy.device)))

    count = of_first(len(there))
    for k in range(count):
        step = of_first(there[k] if there else 0)
        faults = gathered_json(fault_of(stored, step, ranks.rank, ranks.world), ranks)
        fault = next((f for f in faults if f), "")
        if not fault:
            return step
        if ranks.rank == 0:
            line = f"checkpoint {folder_name(step)} is damaged ({fault}): passed over"
            say(line)
            Ledger(folder).write(kind="checkpoint_damaged", reason=line)
    if count:  # on every rank alike
        raise UserError(
            f"{folder} has checkpoints, and none of them is whole: bring one back, or move them "
            "away to begin again."
        )
    return -1


def fault_of(stored: Storage, step: int, rank: int, world: int) -> str:
    """What is wrong with a rank's share of a checkpoint's files, "" for nothing."""
    try:
        with Opened(stored, step, (rank, world)) as checkpoint:
            if rank == 0:
                complete(checkpoint)
    except Damaged as e:
        return str(e)[:1000]
    return ""


def overdue(run: Run, folder: AnyPath, step: int, strategy: Base, ends: bool = False) -> list[str]:
    """Evaluators that were due at `step` but did not come to write their line, or all where their
    lines cannot be read; the same on every rank. ends: whether the run ends there.
    """
    names, done = due(run, step, ends), set()
    if names and strategy.all.rank == 0:
        try:
            rows = written(folder / "evaluations.jsonl")
        except OSError as e:
            rows = []
            say(f"evaluations.jsonl cannot be read ({why(e)}): step {step} is evaluated again")
        done = {str(r.get("name")) for r in rows if r.get("step") == step}
    mine = [float(strategy.all.rank == 0 and name not in done) for name in names]
    flags = torch.tensor(mine, device=strategy.device)
    missing = strategy.all.sum(flags).tolist() if names else []
    return [name for name, flag in zip(names, missing, strict=True) if flag]
