"""What every process of a run does, under `vtx train`, torchrun, srun and Ray alike:
join, assemble, restore, fit, exit code.

0 finished 2 wrong input 3 not finite 4 out of memory 75 asked to leave, saved 1 anything else
"""

import contextlib
import gc
import json
import os
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from vtx_scale.blocks.rules import initial_values
from vtx_scale.checkpoints.lease import check
from vtx_scale.checkpoints.write import Writer
from vtx_scale.data_pipeline import fork_server
from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.loader import Batches, Loader
from vtx_scale.data_pipeline.objects import AnyPath
from vtx_scale.data_pipeline.parent import die_with_parent, leave_with_parent
from vtx_scale.data_pipeline.state import segments_of
from vtx_scale.data_pipeline.text import tokenizer
from vtx_scale.distributed.failpoint import failpoint
from vtx_scale.distributed.phases import PHASES
from vtx_scale.distributed.ranks import gathered_json
from vtx_scale.launch import (
    amendments,
    decided,
    decisions,
    override,
    recipes,
    run_folder,
    torchrun,
)
from vtx_scale.launch.amendments import Plan
from vtx_scale.launch.banner import Banner
from vtx_scale.launch.beats import BEGAN, Heart
from vtx_scale.launch.build import build_objective, train_batches
from vtx_scale.launch.datasets import resolve_epochs, training_data
from vtx_scale.launch.decided import Decision
from vtx_scale.launch.estimate import system_line
from vtx_scale.launch.evaluate import constants_of, each
from vtx_scale.launch.initial import load_initial
from vtx_scale.launch.outside import check_weights, held
from vtx_scale.launch.paths import checkpoints_of, lease_of
from vtx_scale.launch.places import place_at
from vtx_scale.launch.prepare import prepare_folder, refuse
from vtx_scale.launch.process import (
    common_attempt,
    device_of,
    init_process_group,
    keep_traceback,
    keep_words,
    leave_process_group,
    rank_and_world,
    speaks,
)
from vtx_scale.launch.recover import recovered
from vtx_scale.launch.resolve import resolve_data
from vtx_scale.launch.restore import overdue, restore
from vtx_scale.launch.retention import stays
from vtx_scale.launch.room import check_room
from vtx_scale.launch.sharing import let_go, share_opened
from vtx_scale.launch.signs import Signs, of_batch
from vtx_scale.launch.sinks import flat, function_of
from vtx_scale.launch.snapshots import snapshots_of
from vtx_scale.launch.stopping import Stopping
from vtx_scale.objectives.base import Objective
from vtx_scale.specs.run import Run
from vtx_scale.strategies.apply import apply, strategy_of
from vtx_scale.strategies.base import Base
from vtx_scale.trainer.average import Average, average_of
from vtx_scale.trainer.control import Control, Elsewhere, NotFinite
from vtx_scale.trainer.feed import Feed
from vtx_scale.trainer.flops import peak_flops, training_flops
from vtx_scale.trainer.goodput import TIMES, this_attempt
from vtx_scale.trainer.guard import Window
from vtx_scale.trainer.init import initialise_slices
from vtx_scale.trainer.leave import Leave, requests
from vtx_scale.trainer.lines import truncate_logs_after
from vtx_scale.trainer.log import Log
from vtx_scale.trainer.loop import Drifted, Progress, Trainer
from vtx_scale.trainer.optim import optimizer_of
from vtx_scale.trainer.output import (
    PLACE,
    Ledger,
    append_text,
    code_of,
    guarded_stderr,
    open_missing_descriptors,
    say,
    send,
    send_rest,
    sentence,
    silent,
    why,
)
from vtx_scale.trainer.precision import Precision, precision_of
from vtx_scale.trainer.profile import Profile

RUNS: list[str] = []  # that this process has worked on
AT_SAVE = 5.0  # seconds for what grows in a bucket, before a checkpoint is there


def work(
    run: Run,
    folder: AnyPath,
    *,
    fork: bool = False,
    debug: bool = False,
    prepare: bool = False,
    message: Callable[[str], None] = say,
    epoch: int = 0,
) -> int:
    """One rank from start to exit code; a sentence to `message` in place of a
    traceback unless `debug`.

    prepare: no launcher of ours has prepared the folder, rank 0 does. epoch: of the lease that
    a launcher of ours holds on it, 0 for none.
    """
    if RUNS:  # a process that trains again begins anew
        PHASES.reset()
    elif began := os.environ.get(BEGAN):
        PHASES.reset(float(began))
    RUNS.append(str(folder))
    with guarded_stderr(), requests.listen(), contextlib.closing(Heart(rank_and_world()[0])):
        code, text = outcome(lambda: train(run, folder, fork, prepare, epoch), folder, debug)
        keep_words(text)
        if text and (message is not say or speaks(code)):
            message(f"vtx: {text}")
        TIMES.close(code)
        send_rest()
        torchrun.tell(code)
        return code


def outcome(attempt: Callable[[], int], folder: AnyPath, debug: bool) -> tuple[int, str]:
    """(exit code, the sentence that says why, "" where there is nothing to say)."""
    try:
        return attempt(), ""
    except Leave:
        return 75, "asked to leave, and no step is lost by it: run the same command again."
    except UserError as e:
        code, text = 2, str(e)
    except Elsewhere as e:
        return e.code, ""
    except NotFinite as e:
        code, text = 3, str(e)
    except (torch.cuda.OutOfMemoryError, MemoryError) as e:
        first = str(e).splitlines()[0] if str(e) else "host"
        code, text = (
            4,
            (
                f"out of memory ({first}): lower system.micro_batch, set system.recompute=full, "
                "or use system.strategy=fsdp on more ranks."
            ),
        )
    except Drifted as e:
        code, text = 1, str(e)
    except OSError as e:
        code, text = 1, sentence(e)
    except Exception as e:
        if requests.asked and not requests.unsaved():  # a peer has left already
            return 75, ""
        code, text = 1, f"{type(e).__name__}: {e} (log.txt has the traceback; --debug shows it)"
        keep_traceback(folder)
    if debug:
        traceback.print_exc()
    return code, text


def train(run: Run, folder: AnyPath, fork: bool, prepare: bool, epoch: int) -> int:
    """One rank from start to end; the exit code where no exception says another."""
    if "VTX_PARENT" in os.environ:
        die_with_parent(int(os.environ["VTX_PARENT"]))
    elif "TORCHELASTIC_RUN_ID" in os.environ:
        leave_with_parent()
        torchrun.watch(run.system.timeout)
    rank, world = rank_and_world()
    control = Control(folder, rank, run.system.skip_limit)
    lease = shared = signs = None
    try:
        with control.at_once():
            device = device_of(run.system)
            with PHASES.within("start.rendezvous"):
                init_process_group(run.system, device, rank, world)
                if prepare:
                    run, lease, epoch = join(run, folder, fork, rank, world)
                shared = share_opened(run, device) if world > 1 else None
            run_folder.send_while_held(folder, epoch)
        if rank == 0:
            tell = partial(tell_people, folder)
            if os.environ.get("VTX_ROUND", "1") == "1":  # behind a fault nobody waits for it
                # the objective runs on the meta device, for as long as it takes
                with PHASES.within("start.load"), control.at_once():
                    tell(system_line(run, device, world))
            signs = Signs(tell)
        while (code := attempt(run, folder, device, world, control, epoch, signs)) is None:
            requests.unsaved = lambda: False  # what was computed is abandoned, and let go
            control.skipped = 0
            gc.collect()
        return code
    finally:
        if signs is not None:
            signs.close()
        if shared is not None:
            let_go(shared)
        if lease is not None:
            lease.close()
        leave_process_group(well=sys.exc_info()[0] is None)


def tell_people(folder: AnyPath, line: str) -> None:
    """A line of rank 0, before there is a `Log`."""
    say(line)
    append_text(folder, line)


def attempt(
    run: Run,
    folder: AnyPath,
    device: torch.device,
    world: int,
    control: Control,
    epoch: int,
    signs: Signs | None,
) -> int | None:
    """From the newest checkpoint on; the exit code, None where it was decided to go back."""
    with PHASES.within("start.load"), control.at_once():
        parts = assemble(run, folder, device, world, control)
        parts.epoch = epoch
        restored = restore_or_initialise(parts)
    code = fit(parts, restored, signs)
    parts.strategy.close()  # not after an error: it waits for the device, and a peer may be gone
    return code


def join(
    run: Run, folder: AnyPath, fork: bool, rank: int, world: int
) -> tuple[Run, run_folder.Held | None, int]:
    """What `vtx train` would have done before it started ranks: on rank 0, while the others wait;
    the run, the lease where it is rank 0 that holds it, and its epoch.
    """
    lease, fault, epoch = None, None, 0
    with contextlib.ExitStack() as taken:  # whatever ends this gives the lease back
        if rank == 0:
            try:
                banner = Banner("", say)
                banner.lines.append("")  # its first line was said before torch was imported
                run = resolve_epochs(resolve_data(run, say, folder), say)
                data = refuse(run, folder, world)
                banner.data(run, data.n)
                lease = taken.enter_context(run_folder.acquire_lease(folder))
                prepare_folder(run, folder, data, fork)
            except (UserError, OSError) as e:
                fault = e
            epoch = -1 if fault is not None or lease is None else lease.epoch
        if world > 1:
            common = torch.tensor([epoch])
            with PHASES.collective():
                dist.broadcast(common, 0)
            epoch = int(common.item())
            if epoch < 0 and fault is None:
                raise Elsewhere(2)
        if isinstance(fault, OSError) and code_of(fault) == 2:
            raise UserError(sentence(fault)) from fault
        if fault is not None:
            raise fault
        resolved = replace(resolve_epochs(resolve_data(run, folder=folder)), system=run.system)
        run = held(resolved, folder, run_folder.outside_of(folder))
        taken.pop_all()
    return run, lease, epoch


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
            **({"sources": progress.sources} if progress.sources else {}),
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
        if how == "stopped":
            log.message(f"no step beyond {progress.step}: {parts.stopping.tell(progress.step)}")
            how = "finished"
        log.message(
            f"{how} at step {progress.step}: checkpoint in {saved}"
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
        settings=flat(override.to_dict(parts.run)) if first else None,
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


def begin_loaders(run: Run) -> None:
    """Fork the server of a rank's loader processes, before this process has a device or threads."""
    if run.system.workers:
        with requests.without_thread():
            fork_server.begin()


def main(argv: list[str]) -> int:
    """`python -m vtx_scale.launch.worker REQUEST.json`: one rank of `vtx_scale.launch.node`."""
    requests.repeated = lambda number: None  # the launcher hears of it too, and ends its ranks
    request = json.loads(Path(argv[0]).read_text())
    recipes.let_import(request["paths"])
    run = override.from_dict(request["recipe"])
    begin_loaders(run)
    return work(
        run,
        place_at(request["folder"]),
        debug=request["debug"],
        epoch=request["epoch"],
    )


if __name__ == "__main__":
    open_missing_descriptors()
    code = main(sys.argv[1:])
    fork_server.clear()
    os._exit(code)  # daemon threads of libraries must not hold up the end
