"""The loop of a rank with all that surrounds it: evaluations, logs, pictures, roll-backs."""

import contextlib
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from vtx_scale.checkpoints.lease import check
from vtx_scale.checkpoints.write import Writer
from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.loader import Loader
from vtx_scale.data_pipeline.text import tokenizer
from vtx_scale.distributed.failpoint import failpoint
from vtx_scale.distributed.phases import PHASES
from vtx_scale.distributed.ranks import gathered_json
from vtx_scale.launch import (
    decided,
    decisions,
    override,
    run_folder,
)
from vtx_scale.launch.build import build_objective
from vtx_scale.launch.evaluate import constants_of, each
from vtx_scale.launch.parts import Parts
from vtx_scale.launch.paths import checkpoints_of, lease_of
from vtx_scale.launch.process import common_attempt
from vtx_scale.launch.restore import overdue
from vtx_scale.launch.signs import Signs, of_batch
from vtx_scale.launch.sinks import function_of
from vtx_scale.launch.snapshots import snapshots_of
from vtx_scale.specs.walk import walk
from vtx_scale.trainer.control import Elsewhere, NotFinite
from vtx_scale.trainer.feed import Feed
from vtx_scale.trainer.flops import peak_flops, training_flops
from vtx_scale.trainer.goodput import TIMES, this_attempt
from vtx_scale.trainer.log import Log
from vtx_scale.trainer.loop import Trainer
from vtx_scale.trainer.output import (
    PLACE,
    send,
    send_rest,
    why,
)
from vtx_scale.trainer.profile import Profile

AT_SAVE = 5.0  # seconds for what grows in a bucket, before a checkpoint is there


def fit(parts: Parts, restored: bool, signs: Signs | None = None) -> int | None:
    """The loop and what surrounds it; 0 where it came to the end,
    75 where it was asked to leave, None where it goes back.
    """
    run, strategy, progress = parts.run, parts.strategy, parts.progress
    if strategy.all.rank == 0:
        TIMES.begin(parts.folder, this_attempt(parts.epoch), progress.step)
    PHASES.step = progress.step
    with PHASES.within("start.load"), parts.control.at_once():
        log = log_of(parts, restored)
        if restored:
            log.message(f"resumed at step {progress.step} of {run.steps}")
        tell_nodes(parts, log)
        for d in decided.amendments(parts.decisions):
            log.message(f"from step {d.step} on {d.key}={d.value} (decisions/{d.name}.json)")
        workers, device = run.system.workers, strategy.device
        loader = Loader(
            parts.batches, start=progress.step, stop=run.steps, workers=workers, device=device
        )
        trainer = trainer_of(parts, loader, log)
        if progress.step < run.steps:
            of_batch(signs, progress.step)
    how = "left"
    try:
        with PHASES.within("start.load"), parts.control.at_once():
            if strategy.all.rank == 0 and progress.step == 0:
                try:
                    first = Batch(**parts.batches[0])
                    parts.batches.close()  # this process reads no more
                    show_inputs(parts, log, first, 0)
                except Exception as e:  # a picture for people; the loop reads the data too
                    PLACE.failed("tensorboard", why(e))
        if ended_before(parts, trainer, log):
            return 0
        with PHASES.within("step"):
            how = trainer.train()
        if how == "back":
            return None
        saved = parts.folder / "checkpoints"
        more = "; the same command goes on from there" if how == "left" else ""
        if how == "stopped":
            log.message(f"no step beyond {progress.step}: {parts.stopping.tell(progress.step)}")
            how = "finished"
        log.message(
            f"{how} at step {progress.step}: checkpoint in {saved}{more}"
            if progress.step
            else "left before the first step: there is nothing to save"
        )
        return 0 if how == "finished" else 75
    finally:
        if how == "left":
            loader.abandon()
        loader.close()
        if trainer.profile is not None:
            trainer.profile.close()
        log.close()


def ended_before(parts: Parts, trainer: Trainer, log: Log) -> bool:
    """Whether there is no step left to do, behind the evaluations that are overdue."""
    run, stopping, step = parts.run, parts.stopping, parts.progress.step
    if missing := overdue(run, parts.folder, step, parts.strategy):
        trainer.evaluate(missing, step)
    if step >= run.steps:
        log.message(f"finished already: {step} of {run.steps} steps")
        return True
    if not stopping.over:
        return False
    if rest := overdue(run, parts.folder, step, parts.strategy, ends=True):
        trainer.evaluate(rest, step)
    log.message(f"finished already: {stopping.tell(step)}")
    return True


def trainer_of(parts: Parts, loader: Loader, log: Log) -> Trainer:
    """The loop with all that it calls."""
    run, strategy = parts.run, parts.strategy
    attempt = common_attempt(strategy.device, parts.world)
    writer = Writer(
        checkpoints_of(parts.folder, run.system.scratch),
        strategy.all.rank,
        parts.world,
        attempt,
        run.checkpoint.keep,
        epoch=parts.epoch,
        held=holds(parts),
        stays=parts.stays,
        patience=run.system.timeout,
        before=lambda: send(AT_SAVE),
    )
    memory = snapshots_of(
        run,
        strategy,
        parts.optimizer,
        attempt,
        parts.epoch,
        log.message,
        before=lambda: send(AT_SAVE),
    )
    return Trainer(
        run=run,
        objective=parts.objective,
        strategy=strategy,
        optimizer=parts.optimizer,
        loader=loader,
        writer=writer,
        precision=parts.precision,
        control=parts.control,
        ledger=parts.ledger,
        log=log,
        state=parts.state,
        progress=parts.progress,
        guard=parts.guard,
        average=parts.average,
        recipe_at=parts.plan.at if parts.plan is not None else None,
        show=lambda batch, step: show_again(parts, log, batch, step),
        evaluate=lambda names, step: evaluate(parts, log, names, step),
        roll_back=lambda: roll_back(parts, log),
        stops=lambda: parts.stopping.over,
        snapshots=memory,
        profile=profile_of(parts, log) if run.system.profile else None,
    )


def profile_of(parts: Parts, log: Log) -> Profile | None:
    """What looks at the steps of `system.profile`, on rank 0."""
    system, strategy = parts.run.system, parts.strategy
    if strategy.all.rank:
        return None
    return Profile(parts.folder, system.profiled, strategy.device, log.message, system.scratch)


def holds(parts: Parts) -> Callable[[], None]:
    """What raises Lost where another job has taken the folder over."""
    if not parts.epoch:
        return lambda: None
    return partial(check, lease_of(parts.folder), parts.epoch)


def roll_back(parts: Parts, log: Log) -> None:
    """Decide it on rank 0, behind the step that is finished.

    Raises NotFinite where the run went back too often, OSError where the decision cannot be
    written; on every rank alike.
    """
    ranks, window, progress = parts.strategy.all, parts.guard, parts.progress
    fault: Exception | None = None
    send_rest()  # rank 0 reads what all ranks have in the ledger
    if ranks.world > 1:
        with PHASES.collective():
            dist.barrier()
    if ranks.rank == 0:
        try:
            made = decisions.roll_back(parts.folder, window, progress.step, progress.position)
            log.message(
                f"{len(window.spikes())} spikes in {window.guard.window} steps: from step "
                f"{progress.step} back to {made.step}, and on behind what was read since "
                f"(decisions/{made.name}.json)"
            )
        except (NotFinite, OSError, UserError) as e:
            fault = e
    flags = [isinstance(fault, NotFinite), fault is not None]
    often, failed = ranks.sum(
        torch.tensor(flags, dtype=torch.float64, device=parts.strategy.device)
    ).tolist()
    if fault is not None:
        raise fault
    if failed:
        raise Elsewhere(3 if often else 1)


def evaluate(parts: Parts, log: Log, names: list[str], step: int) -> None:
    """Evaluators in the loop: one that cannot be had must not end a training."""

    def note(bad: dict[str, Any]) -> None:
        if parts.strategy.speaks:  # else another rank has the same samples
            parts.ledger.write(**bad, step=step, where="evaluation")

    alone = parts.control.at_once() if parts.world == 1 else contextlib.nullcontext()
    try:
        with PHASES.within("evaluate"), parts.average.shown(parts.strategy), alone:
            failpoint(f"evaluate-{step}")
            evaluate_each(parts, log, names, step, note)
    finally:
        parts.strategy.reshard()


def evaluate_each(
    parts: Parts, log: Log, names: list[str], step: int, note: Callable[[dict[str, Any]], None]
) -> None:
    """What each says, in TensorBoard and evaluations.jsonl, or why it says nothing."""
    for name, scores in each(parts.run, parts.objective, names, note):
        if not isinstance(scores, UserError):
            log.scores(step, name, scores, constants_of(name))
            parts.stopping.hear(name, scores, step)
        elif parts.strategy.all.rank == 0:
            parts.ledger.write(kind="evaluation_failed", reason=str(scores), name=name, step=step)
            log.message(f"step {step}  {name} cannot be computed: {scores}")


def tell_nodes(parts: Parts, log: Log) -> None:
    """On which machines the ranks are, where there are several: the first rank of each names it."""
    if parts.world > 1:
        name = socket.gethostname() if os.environ.get("LOCAL_RANK", "0") == "0" else ""
        names = [n for n in gathered_json(name, parts.strategy.all) if n]
        if len(names) > 1:
            log.message(f"{parts.world} ranks on {len(names)} nodes: {', '.join(names)}")


def log_of(parts: Parts, restored: bool) -> Log:
    """Rank 0 counts what a sample costs; the others say nothing."""
    first, device = parts.strategy.all.rank == 0, parts.strategy.device
    return Log(
        parts.folder,
        parts.run.steps,
        on=first,
        device=device,
        slot_share=slot_share(parts) if first else 0.0,
        resumed=parts.progress.step if restored else None,
        share=TIMES.share,
        settings={k: v for k, v, _ in walk(parts.run)} if first else None,
        feed=feed_of(parts) if first and parts.run.log.to else None,
        an_epoch=0 if parts.batches.more else parts.batches.index.n,
    )


def feed_of(parts: Parts) -> Feed:
    """To where `log.to` says; the sink is opened when there is something for it."""
    run, begin = parts.run, parts.progress.step
    name = f"{parts.folder.name}-{run_folder.read(parts.folder).get('id', '')}"
    return Feed(lambda: function_of(run.log.to)(override.to_dict(run), name, begin))


def slot_share(parts: Parts) -> float:
    """What one sample a second uses of the peak of all ranks:
    samples a second times this is the model FLOP utilisation.
    """
    row = {k: torch.from_numpy(v) for k, v in parts.batches.reader.blank().items()}
    two = torch.arange(2)
    both = {k: torch.stack([v, v]) for k, v in row.items()}
    batch = Batch(both, torch.ones(2, dtype=torch.bool), two, two, two)
    need = training_flops(lambda: build_objective(parts.run, torch.float32), batch)
    compute = parts.precision.compute or parts.precision.weights
    peak = peak_flops(parts.strategy.device, compute)
    return need / (parts.world * peak) if peak else 0.0


def show_inputs(parts: Parts, log: Log, batch: Batch, step: int) -> None:
    """A grid of a batch in TensorBoard, with captions where there are any."""
    captions = []
    if "tokens" in batch:
        words = tokenizer(parts.run.data.tokenizer)
        captions = [words.decode(row.tolist()) for row in batch["tokens"][:16]]
    log.pictures(step, batch, captions)


def show_again(parts: Parts, log: Log, batch: Batch, step: int) -> None:
    """The same of rank 0's share of the step before an evaluation."""
    if parts.strategy.all.rank == 0:
        try:
            show_inputs(parts, log, batch, step)
        except Exception as e:
            PLACE.failed("tensorboard", why(e))
