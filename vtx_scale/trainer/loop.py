"""The step: defined here and nowhere else. Everything it calls is one file away."""

import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vtx_scale.blocks.slots import with_running_statistics
from vtx_scale.checkpoints.memory import Snapshots
from vtx_scale.checkpoints.write import Writer
from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.loader import Loader
from vtx_scale.distributed.failpoint import failpoint
from vtx_scale.distributed.phases import PHASES
from vtx_scale.distributed.ranks import gathered_json
from vtx_scale.objectives.base import Objective
from vtx_scale.specs.run import Guard, Run
from vtx_scale.strategies.base import Base
from vtx_scale.trainer.average import Average
from vtx_scale.trainer.cadence import Cadence, MemoryCadence
from vtx_scale.trainer.control import BadLimit, Control, NotFinite
from vtx_scale.trainer.goodput import TIMES
from vtx_scale.trainer.guard import Window
from vtx_scale.trainer.leave import PATIENCE, Leave, requests
from vtx_scale.trainer.log import Log
from vtx_scale.trainer.optim import set_applied, set_rates
from vtx_scale.trainer.output import Ledger
from vtx_scale.trainer.precision import Precision
from vtx_scale.trainer.profile import Profile
from vtx_scale.trainer.sources import Sources
from vtx_scale.trainer.stragglers import Stragglers


class Drifted(Exception):
    """Copies on several ranks are no longer the same."""


@dataclass
class Progress:
    """What a checkpoint must carry beside tensors and the position of the data."""

    step: int = 0  # finished steps
    applied: int = 0  # of them, those that moved the weights
    samples: int = 0  # valid samples seen
    position: int = 0  # slots handed out: where the order goes on, whatever the batch was
    sources: list[int] = field(default_factory=list)  # valid samples of each source of a mix
    # of the applied steps, those at which the objective kept some parameters frozen
    frozen: int = 0


def due(run: Run, step: int, ends: bool = False) -> list[str]:
    """The evaluators that look at the model after `step` finished steps. ends: whether the run ends
    there, if that is not its last step.
    """
    return [
        e.name
        for e in run.evaluate
        if ends or step == run.steps or (e.every and step and step % e.every == 0)
    ]


def to_keep(run: Run, step: int) -> bool:
    """Whether "auto" saves behind a step because that checkpoint is one to keep: at a multiple of
    `checkpoint.keep_every`, and where the evaluator of `checkpoint.best` looks at the model.
    """
    keep = run.checkpoint
    if keep.every != "auto":
        return False
    milestone = bool(keep.keep_every and step % keep.keep_every == 0)
    return milestone or keep.best.rpartition("/")[0] in due(run, step)


@dataclass
class Trainer:
    """The parts of a run, put together by the worker."""

    run: Run
    objective: Objective
    strategy: Base
    optimizer: torch.optim.Optimizer
    loader: Loader
    writer: Writer
    precision: Precision
    control: Control
    ledger: Ledger
    log: Log
    state: Callable[[], dict[str, Any]]  # JSON that goes into the manifest
    progress: Progress = field(default_factory=Progress)
    guard: Window = field(default_factory=lambda: Window(Guard()))
    average: Average = field(default_factory=Average)
    # the recipe behind so many finished steps, where something in it was amended
    recipe_at: Callable[[int], Run] | None = None
    evaluate: Callable[[list[str], int], None] = lambda names, step: None
    show: Callable[[Batch, int], None] = lambda batch, step: None  # what the model has just seen
    roll_back: Callable[[], None] = lambda: None  # decide to go back, on every rank
    # whether the run ends before its last step, as every rank says alike
    stops: Callable[[], bool] = lambda: False
    snapshots: Snapshots | None = None  # in memory
    profile: Profile | None = None  # of rank 0
    saved: int = -1  # the newest step handed to the writer
    first: int = 0  # the step that this start goes on from
    unevaluated: bool = False  # asked to leave while it evaluated

    def __post_init__(self) -> None:
        self.statistics = with_running_statistics(self.objective)
        every, faults = self.run.checkpoint.every, self.run.checkpoint.fault_rate
        world, say = self.strategy.all.world, self.log.message
        self.cadence = Cadence(every, faults, world, self.of_first, say)
        memory, beside = self.run.checkpoint.memory, self.strategy.device.type == "cpu"
        self.memory = MemoryCadence(memory, beside, self.of_first, say)
        self.stragglers = Stragglers(self.strategy.all, self.strategy.device, self.ledger, say)

    def train(self) -> str:
        """Run to the end, to where it stops before it, to the request to leave, or to where the
        guard goes back: "finished", "stopped", "left" or "back".
        """
        run, p = self.run, self.progress
        first = self.first = p.step
        set_applied(self.optimizer, p.applied, self.strategy.frozen(0), p.frozen)
        before = (p.samples, p.position, p.step)
        self.sources = Sources(self.loader.batches, run.data.bad_limit, p.sources, p.position)
        p.sources = self.sources.samples
        # of a mix each source has its own
        self.limit = BadLimit(1.0 if self.sources.names else run.data.bad_limit, *before)
        requests.unsaved = lambda: p.step > max(first, self.writer.committed or 0)
        leaving = False
        while p.step < run.steps and not leaving and not self.stops():
            began = time.perf_counter()
            self.stragglers.begin()
            with PHASES.within("data_wait"):  # until all ranks have their samples
                batch = self.next_batch()
                waited = time.perf_counter() - began
                total, valid, leaving = self.count(batch)
            if leaving or batch is None:
                break  # asked while a rank waited for data: the step has not begun
            try:
                with PHASES.within("start.compile" if p.step == first else "step"):
                    asked = self.step(batch, total, valid, began, waited)
            except Leave:  # the first step of this start, which compiles: nothing is lost by it
                leaving = True
                break
            leaving = asked or self.control.taken + p.step - first == run.system.leave_after
            requests.patience = max(PATIENCE, 3 * (time.perf_counter() - began))
            if self.guard.over():
                return self.go_back(leaving)
            if leaving or self.save_is_due():
                self.save()
            if not leaving:
                self.snapshot()
            if not asked and (names := due(run, p.step)):
                leaving |= not self.evaluated(names)
                self.show(batch, p.step)
        return self.end(leaving)

    def end(self, leaving: bool) -> str:
        """Save what is not saved, and let evaluators of the end look at a model that gets no
        further; as `train`. Raises NotFinite where no step of the run counted.
        """
        run, p = self.run, self.progress
        early = self.stops() and not leaving and p.step < run.steps
        if (leaving or early) and p.step not in (self.first, self.saved):
            self.save()
        if early and (names := [n for n in due(run, p.step, True) if n not in due(run, p.step)]):
            leaving = not self.evaluated(names)
        self.finish()
        self.tell_masked(self.first)
        if not leaving and p.step and not p.applied:
            raise NotFinite(
                f"None of {p.step} steps counted: lower optim.lr, or look at what ledger.jsonl "
                "says of them."
            )
        if leaving and (p.step < run.steps or self.unevaluated):
            return "left"
        return "stopped" if early else "finished"

    def now(self) -> Run:
        """The recipe as it holds for the step that comes."""
        return self.run if self.recipe_at is None else self.recipe_at(self.progress.step)

    def go_back(self, leaving: bool) -> str:
        """Decide to go back; what is beyond is abandoned, so that leaving saves nothing."""
        self.control.taken += self.progress.step - self.first
        with PHASES.within("save_stall"), self.control.saving():
            self.end_snapshots()
            self.settle()
            self.roll_back()
        return "left" if leaving else "back"

    def next_batch(self) -> Batch | None:
        """The step's share, None where this rank is asked to leave before it came."""
        if self.profile is not None:
            self.profile.begin(self.progress.step + 1)
        failpoint(f"data-{self.progress.step + 1}")
        try:
            with self.control.at_once():
                return self.loader.next()
        except Leave:
            return None

    def evaluated(self, names: list[str]) -> bool:
        """Whether there was time for it: else all ranks leave, at the same batch."""
        try:
            self.evaluate(names, self.progress.step)
            return True
        except Leave:
            self.unevaluated = True
            return False

    def step(self, batch: Batch, total: float, valid: float, began: float, waited: float) -> bool:
        """One step; whether the ranks have been asked to leave behind it.

        began, waited: when it was asked for its samples, and how long they took, in seconds.
        """
        run, p = self.now(), self.progress
        rate = run.optim.lr * run.schedule(p.step, run.steps)
        set_rates(self.optimizer, run.optim, rate, p.step, run.steps)
        for module in self.statistics:
            module.discard_statistics()  # what a step that did not count has left behind
        batch = self.objective.prepare(batch, p.step)

        # alone and with nothing to lose; several ranks leave together, behind the step
        anew = p.step == self.first and self.strategy.all.world == 1
        with self.control.at_once() if anew else contextlib.nullcontext():
            loss, logged = self.forward_backward(batch, total)
        failpoint(f"backward-{p.step + 1}")
        scale = self.precision.scale  # of these gradients; `sound` may move on to another
        loss_value, leave, failed, means = self.share(loss, logged)
        for leaf in self.strategy.frozen(p.step):
            leaf.grad = None
        norms = self.strategy.norms() / scale
        norm = torch.linalg.vector_norm(norms).float().item()
        metrics = {name: value / max(valid, 1.0) for name, value in means.items()}
        if failed:
            self.save_failed()

        if self.sound(batch, loss, loss_value, norm, valid):
            metrics |= self.apply(norm, norms, scale)
        self.strategy.clear()
        self.await_snapshot()
        p.step += 1
        PHASES.step = p.step
        p.samples += int(valid)
        p.position = self.loader.end

        if self.profile is not None:
            self.profile.end(p.step)
        failpoint(f"step-{p.step}")
        seconds = time.perf_counter() - began
        values = {"loss": loss_value if valid else math.nan, "lr": rate, "grad_norm": norm}
        speed = {"samples_per_second": valid / seconds, "data_wait": waited, "seconds": seconds}
        if self.log.on:
            metrics |= self.sources.metrics(p.position)
        self.log.step(p.step, position=p.position, samples=p.samples, **values, **speed, **metrics)
        self.stragglers.add(p.step, seconds, waited)
        return leave

    def note(self, batch: Batch) -> None:
        """What could not be used, and what was let pass, in the ledger."""
        step = self.progress.step + 1
        for bad in batch.bad:
            if bad["kind"] != "retry":
                self.limit.add_reason(bad)
                self.sources.note(bad)
        if not self.strategy.speaks:  # another rank has the same samples
            return
        for bad in batch.bad:
            self.ledger.write(**bad, step=step)
        for reason, count in batch.notes.items():
            self.ledger.write(kind="note", reason=reason, count=count, step=step)

    def count(self, batch: Batch | None) -> tuple[float, float, bool]:
        """(what the loss is divided by, valid slots) of the global batch, known before the forward
        pass, so that a masked slot weighs nothing; and whether a rank has no batch because it is
        asked to leave. Raises UserError beyond the limit of bad ones.
        """
        device = self.strategy.device
        heads = torch.zeros(4, dtype=torch.float64, device=device)
        if batch is None:
            heads[3] = 1
        else:
            masked = (~batch.valid & (batch.ids >= 0)).sum()
            heads[:3] = torch.stack([self.objective.count(batch), batch.valid.sum(), masked])
        shared = torch.cat([heads[:3], self.sources.counts(batch, device)])
        (total, valid, bad, *each), (leave,) = self.strategy.totals(shared, heads[3:])
        if leave or batch is None:
            return total, valid, True
        self.note(batch)
        last = self.progress.step + 1 == self.run.steps
        self.limit.add(int(bad), int(valid), last)
        self.sources.add(each, last)
        return total, valid, False

    def tell_masked(self, first: int) -> None:
        """At the end: how many slots were masked in this start, by reason, on all ranks."""
        limit = self.limit
        if not limit.masked:
            return
        reasons: Counter[str] = Counter()
        mine = dict(limit.reasons.most_common(20))
        for theirs in gathered_json(mine, self.strategy.data):
            reasons.update(theirs)
        listed = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        since = f"since step {first}: " if first else ""
        self.log.message(
            f"{since}{limit.masked} of {limit.slots} slots were masked ({listed}); "
            "ledger.jsonl names them"
        )

    def share(
        self, loss: Tensor, logged: dict[str, Tensor]
    ) -> tuple[float, bool, bool, dict[str, float]]:
        """Over all ranks, in one message: the loss, whether to leave, whether a save failed, and
        the sums of what is logged.
        """
        flags = torch.tensor(
            [self.control.wants_to_leave(), self.writer.error is not None],
            dtype=torch.float64,
            device=loss.device,
        )
        values = torch.cat([loss.double().reshape(1), *logged.values()])
        (loss_value, *sums), (leave, failed) = self.strategy.totals(values, flags)
        return loss_value, leave > 0, failed > 0, dict(zip(logged, sums, strict=True))

    def save_is_due(self) -> bool:
        """At the end, as `checkpoint.every` says, and where a checkpoint is one to keep."""
        run, step = self.run, self.progress.step
        due = self.cadence.due(step, self.writer.seconds)  # asked at every step
        return due or step == run.steps or to_keep(run, step)

    def forward_backward(self, batch: Batch, total: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Gradients of the sum over the global batch divided by its count.

        Returns this rank's part of the loss, and what the objective has seen, (1,) each, times the
        valid slots that saw it.
        """
        micros = batch.split(self.run.system.micro_batch if self.run.objective.separable else None)
        loss = torch.zeros((), device=self.strategy.device)
        logged: dict[str, Tensor] = {}
        for i, micro in enumerate(micros):
            with self.strategy.micro(last=i == len(micros) - 1):
                with self.precision.cast(self.strategy.device):
                    part, log = self.strategy.forward(micro, self.progress.step)
                part = part / max(total, 1.0)
                self.strategy.backward(
                    part * self.precision.scale if self.precision.scale != 1 else part
                )
                loss = loss + part.detach()
                count = micro.valid.sum()
                for name, value in log.items():
                    seen = value.detach().double().reshape(1) * count
                    # a mean over no slots may be 0 / 0
                    logged[name] = logged.get(name, 0.0) + torch.where(count > 0, seen, 0.0)
        return loss, logged

    def sound(self, batch: Batch, mine: Tensor, loss: float, norm: float, valid: float) -> bool:
        """The same verdict on every rank; a step that is not finite, or a spike, is skipped and its
        samples are named.
        """
        step = self.progress.step + 1
        if not valid:
            if self.strategy.all.rank == 0:
                self.ledger.write(kind="skip", reason="no valid sample", step=step)
            return False
        finite = math.isfinite(loss) and math.isfinite(norm)
        self.precision.update(finite)
        if finite:
            self.control.skipped = 0
            spike = self.guard.judge(step, loss, norm)
            if spike:
                self.tell_spike(batch, mine, loss, norm, valid)
            return not spike
        if self.strategy.speaks and (not math.isfinite(mine.item()) or math.isfinite(loss)):
            ids = batch.ids[batch.valid].tolist()
            self.ledger.write(
                kind="skip",
                reason="loss" if not math.isfinite(loss) else "gradient",
                step=step,
                rank=self.strategy.all.rank,
                samples=ids,
            )
        self.log.message(
            f"step {step} is not finite (loss {loss}, gradient norm {norm}): "
            "skipped, see ledger.jsonl"
        )
        self.control.skip(step)
        return False

    def tell_spike(
        self, batch: Batch, mine: Tensor, loss: float, norm: float, valid: float
    ) -> None:
        """In the ledger: a line of rank 0, and one of each rank whose own samples have a loss that
        would be a spike, with their names.
        """
        step, sound = self.progress.step + 1, [n.loss for n in self.guard.numbers if not n.spike]
        share = batch.valid.sum().item() / valid
        guilty = self.strategy.speaks and self.guard.beyond(mine.item(), [x * share for x in sound])
        if guilty or self.strategy.all.rank == 0:
            self.ledger.write(
                kind="skip",
                reason="spike",
                step=step,
                rank=self.strategy.all.rank,
                loss=loss,
                grad_norm=norm,
                position=self.loader.end - self.run.global_batch,
                samples=batch.ids[batch.valid].tolist() if guilty else [],
            )
        self.log.message(
            f"step {step} is a spike (loss {loss:.4g}, gradient norm {norm:.4g}): "
            "skipped, see ledger.jsonl"
        )

    def apply(self, norm: float, norms: Tensor, scale: float) -> dict[str, float]:
        """Move the weights and what follows them; what the objective logs of it. scale: of the
        loss, which is still in the gradients and no longer in their norms.
        """
        optim, step = self.now().optim, self.progress.step
        clip, whole = optim.clip, 1 / scale
        if clip is not None and optim.clip_each:
            self.strategy.scale([whole * min(1.0, clip / max(n, 1e-12)) for n in norms.tolist()])
        else:
            factor = whole * (clip / norm if clip is not None and norm > clip else 1.0)
            if factor != 1:
                self.strategy.scale(factor)
        self.optimizer.step()
        self.progress.applied += 1
        self.progress.frozen += bool(self.strategy.frozen(step))
        for module in self.statistics:
            module.update_statistics()
        self.strategy.clamp()
        self.strategy.publish()
        self.strategy.follow(step)
        self.average.move()
        return {name: value.item() for name, value in (self.objective.update_buffers(step)).items()}

    def save(self) -> None:
        began = time.perf_counter()
        with PHASES.within("save_stall"), self.control.saving():
            self.settle()
            self.compare_copies()
            self.writer.save(self.progress.step, self.strategy.slices(self.optimizer), self.state())
        self.saved = self.progress.step
        self.cadence.stall = time.perf_counter() - began
        TIMES.cut(least=1.0)

    def snapshot(self) -> None:
        """In memory, where one is due; what does not succeed is said and costs nothing else."""
        kept, step = self.snapshots, self.progress.step
        if kept is None or not self.memory.due(step, kept.seconds) or step == self.run.steps:
            return
        began = time.perf_counter()
        with PHASES.within("save_stall"), self.control.saving():
            if self.saved != step:
                self.compare_copies()
            kept.wait()
            broken = torch.tensor([float(bool(kept.broken))], device=self.strategy.device)
            if self.strategy.all.sum(broken).item():
                self.snapshots = None
                why = kept.broken or "another rank has no connection any more"
                self.log.message(f"no more snapshots in memory until the next start: {why}")
                return
            if kept.error:
                self.log.message(f"a snapshot in memory failed, training goes on: {kept.error}")
            kept.save(step, self.strategy.slices(self.optimizer), self.state())
        self.memory.stall = time.perf_counter() - began

    def await_snapshot(self) -> None:
        """Before a step counts: the snapshot from before it is there, so that a fault never costs
        more steps than `checkpoint.memory` says.
        """
        if self.snapshots is not None and self.run.checkpoint.memory != "auto":
            with PHASES.within("save_stall"):
                self.snapshots.wait()

    def end_snapshots(self) -> None:
        """No more of them in this start: ranks that end, or go back, have none under way."""
        if self.snapshots is not None:
            self.snapshots.close()
            self.snapshots = None

    def compare_copies(self) -> None:
        """Before a save: copies that are no longer the same must not become a checkpoint.

        Raises Drifted on every rank: what was saved before is the last that can be trusted.
        """
        if names := self.strategy.drifted():
            step, first = self.progress.step, names[0]
            text = f"{len(names)} parameters differ between ranks that hold copies ({first} first)"
            if self.strategy.all.rank == 0:
                self.ledger.write(kind="drift", reason=text, step=step)
            self.log.message(f"step {step} is not saved: {text}")
            raise Drifted(
                f"{text}: a device or its memory is at fault. Run the same command again, on other "
                "machines where it comes back; it goes on from the checkpoint before."
            )

    def of_first(self, values: list[float]) -> list[float]:
        """Rank 0's numbers, on every rank."""
        ranks = self.strategy.all
        mine = values if ranks.rank == 0 else [0.0] * len(values)
        row = torch.tensor(mine, dtype=torch.float64, device=self.strategy.device)
        return list(ranks.sum(row).tolist())

    def save_failed(self) -> str:
        """On every rank at the same step: drop the save, say so, go on;
        the last good checkpoint stays.

        Raises UserError where another job has taken the run over.
        """
        self.writer.abandon()
        found = gathered_json([self.writer.error, self.writer.lost], self.strategy.all)
        reasons = [r for r in found if r and r[0]]
        reason = str(reasons[0][0]) if reasons else "a part failed"
        if any(lost for _, lost in reasons):
            raise UserError(f"{reason}: this one ends, with what it has saved before.")
        self.writer.clear()  # no rank writes any more
        if self.writer.error:
            self.ledger.write(
                kind="save_failed",
                reason=self.writer.error,
                step=self.saved,
                rank=self.strategy.all.rank,
            )
        self.log.message(
            f"saving step {self.saved} failed ({reason}): the checkpoint before it stays; "
            f"{remedy(reason)} before the next save"
        )
        self.writer.error = None
        return reason

    def settle(self) -> str | None:
        """Wait for the save under way on every rank; why it failed, or None.

        The ranks ask each other while they wait: one that failed must not keep the others waiting
        for its part.
        """
        while True:
            busy = self.writer.busy  # read before the error: a writer sets its error and then ends
            now = torch.tensor(
                [float(busy), float(self.writer.error is not None)], device=self.strategy.device
            )
            some_busy, some_failed = self.strategy.all.sum(now).tolist()
            if some_failed:
                return self.save_failed()
            if not some_busy:
                self.writer.wait()
                return None
            time.sleep(0.02)

    def finish(self) -> None:
        """See that the last save is there. Raises OSError where it is not."""
        with PHASES.within("save_stall"), self.control.saving():
            self.end_snapshots()
            reason = self.settle()
        if reason:
            raise OSError(
                f"The last checkpoint could not be saved ({reason}): "
                f"{remedy(reason)}, and run the same command again."
            )


def remedy(reason: str) -> str:
    """What to do about a save that failed for this reason."""
    return "look at the server" if "s3://" in reason else "make room or mend the path"
