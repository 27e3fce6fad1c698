"""What a run needs and takes on so many GPUs, under every strategy, and which is the cheapest that
fits.
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from vtx_scale.blocks.cuts import cut_fault, cut_layers
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.distributed.ranks import Ranks
from vtx_scale.objectives.base import Objective
from vtx_scale.planner.activations import Recompute, Row, Trace, blank_batch, trace
from vtx_scale.planner.hardware import GPU, Assumed
from vtx_scale.planner.layout import KINDS, STRATEGIES, Layout, Offload
from vtx_scale.planner.memory import Memory, Numbers, fullest, memory, states
from vtx_scale.planner.shapes import held, parameters_of
from vtx_scale.planner.time import Faults, Step, faults_of, step_of
from vtx_scale.planner.traffic import Message, messages
from vtx_scale.specs.run import Run
from vtx_scale.trainer.flops import training_flops
from vtx_scale.trainer.precision import precision_of

# (the ranks that it sees, the slots that it encodes at once, None for all) -> the objective on the
# meta device, in float32
Build = Callable[[Ranks, int | None], Objective]
CHUNKS = 4  # passes of a cut batch that are traced; more of them are alike
GIB = 2**30


@dataclass(frozen=True)
class Plan:
    """One layout of a run. share: slots of a rank in a step, micro: of them at once, micros: how
    often. capacity: bytes of a GPU that the run may take. skew: the fullest rank's part of what is
    cut, of an equal one.
    """

    layout: Layout
    share: int
    micro: int
    micros: int
    recompute: Recompute
    memory: Memory
    capacity: float
    traffic: tuple[Message, ...]
    step: Step
    faults: Faults
    skew: float

    @property
    def fits(self) -> bool:
        return self.memory.gpu <= self.capacity

    @property
    def seconds(self) -> float:
        """Of a step that counts, faults included."""
        return self.step.total / self.faults.goodput if self.faults.goodput else math.inf


class Planner:
    """A run on so many GPUs of a kind.

    build: as `Build` says; row: a blank sample of its reader. Everything is counted once and kept.
    """

    def __init__(
        self, run: Run, gpus: int, gpu: GPU, build: Build, row: Row, assumed: Assumed | None = None
    ) -> None:
        self.run, self.gpus, self.gpu = run, gpus, gpu
        self.build, self.row, self.assumed = build, row, assumed or Assumed()
        name = "bf16" if run.system.precision == "auto" else run.system.precision
        precision = precision_of(replace(run.system, precision=name), torch.device("cpu"))
        self.compute = precision.compute
        self.numbers = Numbers.of(precision.weights, precision.compute)
        self.objective = build(Ranks(), None)
        self.parameters = parameters_of(self.objective)
        self.trained = [p for p in self.parameters if p.role == "trained"]

    @functools.cached_property
    def operations(self) -> float:
        """Of a training step for one slot; 0 where the objective cannot run on the meta device."""
        return training_flops(lambda: self.build(Ranks(), None), blank_batch(self.row, 2))

    @functools.cached_property
    def checkpoint(self) -> int:
        """Bytes of one: parameters, followers and the optimizer's state."""
        found = states(self.parameters, Layout("single", 1), self.run.optim, self.numbers)
        return sum(found[k] for k in ("parameters", "frozen", "followers", "optimizer"))

    @functools.cache  # noqa: B019  a planner lives as long as its answers
    def trace(
        self,
        slots: int,
        micro: int | None,
        world: int,
        sharded: bool,
        recompute: Recompute,
        tp: int,
    ) -> Trace:
        """As `vtx_scale.planner.activations.trace`; micro: what the objective itself cuts by.

        Raises UserError where the objective cannot run on the meta device.
        """
        try:
            return trace(
                lambda ranks: self.build(ranks, micro),
                self.row,
                slots,
                world=world,
                compute=self.compute,
                sharded=sharded,
                recompute=recompute,
                tp=tp,
            )
        except UserError:
            raise
        except Exception as e:  # a stranger's objective may look at values
            raise UserError(
                f"{self.run.objective.title()} cannot run on the meta device, so that its "
                f"activations are not known ({type(e).__name__}: {e})."
            ) from e

    def pass_of(self, layout: Layout, share: int, micro: int, recompute: Recompute) -> Trace:
        """What the forward and backward pass of a rank's slots needs, `micro` of them at once."""
        how = (layout.data, layout.kind.casts, recompute, layout.tp)
        if self.run.objective.separable or micro >= share:
            return self.trace(micro, None, *how)
        if share <= CHUNKS * micro:
            return self.trace(share, micro, *how)
        # the loss holds slots x slots of all ranks, the rest grows no faster than slots
        some, more = (self.trace(n * micro, micro, *how) for n in (CHUNKS // 2, CHUNKS))
        square = (more.alone - some.alone) / (more.slots**2 - some.slots**2)
        extra = max(0, round(square * (share**2 - more.slots**2)))
        rise = share / more.slots
        return replace(
            more,
            slots=share,
            path=tuple((g, now + extra) for g, now in more.path),
            inside=more.inside + extra,
            batch=round(more.batch * rise),
            sent={k: (round(size * rise), calls) for k, (size, calls) in more.sent.items()},
        )

    def plan(self, layout: Layout, micro: int, recompute: Recompute) -> Plan:
        """One layout, with so many slots at once."""
        share = -(-self.run.global_batch // layout.data)
        separable = self.run.objective.separable
        parts = -(-share // micro)
        micros, chunks = (parts, 1) if separable else (1, parts)
        seen = self.pass_of(layout, share, micro, recompute)
        need = memory(self.parameters, layout, self.run.optim, self.numbers, seen, micros)
        traffic = messages(self.parameters, layout, self.numbers, seen, micros, chunks)
        again = 1 + ((recompute == "full") + (chunks > 1)) / 3
        step = step_of(
            self.operations * share * again / layout.tp,
            self.compute is None,
            traffic,
            *self.moved(layout, parts),
            self.gpu,
            self.assumed,
        )
        cut = layout.kind.weights or layout.kind.state
        index = fullest(self.parameters, layout, self.run.optim, self.numbers)
        whole = held(self.trained, None, 1, tp=layout.tp)
        most = held(self.trained, cut, layout.ways, index, layout.tp)
        writers = layout.ways * layout.tp if cut else 1
        return Plan(
            layout=layout,
            share=share,
            micro=micro,
            micros=parts,
            recompute=recompute,
            memory=need,
            capacity=self.gpu.memory * (1 - self.assumed.reserve),
            traffic=tuple(traffic),
            step=step,
            faults=faults_of(self.gpus, writers, self.checkpoint, self.gpu, self.assumed),
            skew=most * layout.ways / whole if cut else 1.0,
        )

    def moved(self, layout: Layout, passes: int) -> tuple[float, float]:
        """Bytes that the optimizer reads and writes on a GPU, and that go to and from the host.
        passes: how often a step runs forward and backward.
        """
        index = fullest(self.parameters, layout, self.run.optim, self.numbers)
        found = states(self.parameters, layout, self.run.optim, self.numbers, index)
        part = held(self.trained, layout.kind.state, layout.ways, index, layout.tp)
        part *= self.numbers.weight
        touched = 2 * found["optimizer"] + 3 * part + 3 * found["followers"]
        if layout.offload == "none":
            return touched, 0.0
        slower = touched * self.gpu.host / self.assumed.host_memory
        if layout.kind.casts:  # gathered twice a micro-batch, gradients back once
            cut = layout.kind.weights
            every = held(self.parameters, cut, layout.ways, index, layout.tp) * self.numbers.weight
            return 0.0, 2 * passes * every + part + slower
        return 0.0, (5 if layout.offload == "all" else 2) * part + slower

    def micros(self, layout: Layout) -> list[int]:
        """Slots at once that may be tried, from all of a rank's to one."""
        share = -(-self.run.global_batch // layout.data)
        given = self.run.system.micro_batch
        if given is not None or self.run.objective.batch_statistics:
            return [min(given or share, share)]
        return [-(-share // 2**k) for k in range(share.bit_length()) if share >= 2**k]

    def best(self, layout: Layout) -> Plan:
        """The quickest way of a layout that fits; else the one that needs least. Raises UserError
        where a run would refuse them all.
        """
        choices = self.recomputes(layout)
        found = [plan for recompute in choices for plan in self.ways(layout, recompute)]
        fitting = [p for p in found if p.fits]
        if fitting:
            least = min(p.seconds for p in fitting)  # the last bits are no reason to compute more
            return next(p for p in fitting if p.seconds <= least * (1 + 1e-9))
        return min(found, key=lambda p: p.memory.gpu)

    def recomputes(self, layout: Layout) -> list[Recompute]:
        """What a run of this layout may recompute. Raises UserError where it may not be at all."""
        choices: tuple[Recompute, ...] = ("none", "selective", "full")
        faults = {choice: self.fault(layout, choice) for choice in choices}
        if None not in faults.values():
            raise UserError(str(faults["none"]))
        return [choice for choice in choices if faults[choice] is None]

    def fault(self, layout: Layout, recompute: Recompute) -> str | None:
        """Why `vtx train` refuses it, a sentence."""
        objective = self.run.objective
        system = replace(layout.applied(self.run.system), recompute=recompute)
        micro, share = system.micro_batch, -(-self.run.global_batch // layout.data)
        if micro is not None and micro < share and objective.batch_statistics:
            return (
                f"system.micro_batch={micro} is less than a rank's {share} slots, but this model's "
                "batch norms are over the whole batch: leave it out."
            )
        if micro and not objective.separable:  # its micro-batches are computed again as they are
            autocast = self.compute is not None and not layout.kind.casts
            never = ("selective", "full") if layout.strategy == "zero3" else ("selective",)
            if (autocast or layout.strategy == "zero3") and recompute in never:
                return (
                    f"system.recompute={recompute}: {layout.strategy} computes nothing again in "
                    "micro-batches that are computed again; leave it out."
                )
        found = [f"system.{fault}" for fault in system.faults()]
        if (fault := system.world_fault(layout.gpus)) is not None:
            found.append(fault)
        if layout.strategy == "fsdp" and system.tp is not None:
            found.append(f"system.tp={system.tp} shares layers too, which is tp_fsdp.")
        return found[0] if found else None

    def ways(self, layout: Layout, recompute: Recompute) -> Iterator[Plan]:
        """With fewer slots at once until it fits, or until fewer do not help."""
        options = self.micros(layout)
        if not self.run.objective.separable and recompute != "none":
            options = options[:1]  # parts of a batch are computed again as they are
        before = math.inf
        while options:
            now = self.plan(layout, options[0], recompute)
            yield now
            size = now.memory.kinds.get("activations", 0)
            room = now.capacity - now.memory.gpu + size
            if now.fits or now.memory.gpu > 0.95 * before:
                break
            before = now.memory.gpu
            # activations grow with slots: pass over what cannot fit
            likely = [n for n in options[1:] if n * size <= 1.25 * now.micro * room]
            options = likely or options[1:][-1:]

    def layouts(self, strategy: str) -> Iterator[Layout]:
        """The forms of a strategy that may be tried. Raises UserError where there is none."""
        system, node = self.run.system, self.assumed.gpus_a_node
        offload: Offload = system.offload
        if strategy == "hsdp":
            copies = [2**k for k in range(1, self.gpus.bit_length()) if self.gpus % 2**k == 0]
            copies = [n for n in copies if self.gpus // n >= min(node, self.gpus // 2)]
            if system.strategy == strategy:
                copies = [system.replicas]
            for n in copies or [system.replicas]:
                yield Layout(strategy, self.gpus, replicas=n, offload=offload)
        elif strategy in ("tp", "tp_fsdp"):
            ways = [n for n in (2, 4, 8) if self.gpus % n == 0 and n <= min(node, self.gpus // 2)]
            if strategy == "tp":
                ways = [self.gpus]
            elif system.tp is not None:
                ways = [system.tp]
            for n, fault in self.shared(strategy, ways):
                if fault is None:
                    yield Layout(strategy, self.gpus, tp=n, offload=offload)
        else:
            yield Layout(strategy, self.gpus, offload=offload)

    def shared(self, strategy: str, ways: list[int]) -> list[tuple[int, str | None]]:
        """Of each number of ranks on an axis why it cannot be. Raises UserError where none can."""
        if not cut_layers(self.objective):
            raise UserError("no layer of this model can be shared by ranks.")
        found = [(n, cut_fault(self.objective, n)) for n in ways if n > 1]
        if not found:
            raise UserError(f"{strategy} needs more than {self.gpus} GPUs.")
        if all(fault for _, fault in found):
            raise UserError(str(found[0][1]))
        return found

    def of(self, strategy: str) -> Plan:
        """The best form of a strategy. Raises UserError where it cannot be."""
        found = []
        kind = KINDS[strategy]
        if self.run.optim.kind == "adafactor" and kind.state in ("flat", "each"):
            raise UserError("Adafactor needs sums of rows and columns, and this cuts through them.")
        if self.run.optim.kind == "muon" and (
            strategy in ("tp", "tp_fsdp") or kind.state in ("flat", "each")
        ):
            raise UserError("Muon needs whole matrices or rows of them, and this cuts otherwise.")
        for layout in self.layouts(strategy):
            if layout.data > self.run.global_batch:
                raise UserError(
                    f"{layout}: {layout.data} ranks share a batch of {self.run.global_batch} slots."
                )
            found.append(self.best(layout))
        return min(found, key=lambda p: (not p.fits, p.seconds if p.fits else p.memory.gpu))

    def all(self, strategies: tuple[str, ...] = STRATEGIES) -> "Answer":
        """Every strategy, the cheapest first among those that fit."""
        plans, refused = [], {}
        for strategy in strategies:
            try:
                plans.append(self.of(strategy))
            except (UserError, LookupError) as e:
                refused[strategy] = str(e)
        plans.sort(key=lambda p: (not p.fits, p.seconds if p.fits else p.memory.gpu))
        return Answer(self, tuple(plans), refused)


def causes(plan: Plan) -> dict[str, float]:
    """Seconds of a step, by what they are lost to."""
    step = plan.step
    return {
        "it waits for messages": step.waits,
        "it computes more": step.arithmetic,
        "its optimizer": step.optimizer,
        "it waits for the host": step.offload,
        "faults cost more": plan.seconds - step.total,
    }


@dataclass(frozen=True)
class Answer:
    """plans: those that can be, the cheapest that fits first. refused: the others, and why."""

    planner: Planner
    plans: tuple[Plan, ...]
    refused: dict[str, str]

    @property
    def cheapest(self) -> Plan | None:
        return self.plans[0] if self.plans and self.plans[0].fits else None

    def why(self, plan: Plan) -> str:
        """Why it is the one, or why it is not."""
        if not plan.fits:
            kind, size = max(plan.memory.kinds.items(), key=lambda item: item[1])
            return (
                f"needs {plan.memory.gpu / GIB:,.1f} GiB of {plan.capacity / GIB:,.1f}: "
                f"{size / GIB:,.1f} of them {kind}"
            )
        best = self.cheapest
        if best is None or plan is best:
            return "the cheapest that fits"
        ours, theirs = causes(plan), causes(best)
        if plan.seconds < 1.01 * best.seconds:
            return "as long within 1 %"
        cause = max(ours, key=lambda k: ours[k] - theirs[k])
        return f"{plan.seconds / best.seconds:.2f} times as long: {cause}"

    def notes(self) -> list[str]:
        """What a reader should know of the strategies."""
        found = []
        for plan in self.plans:
            if plan.skew > 1.1 and plan.layout.kind.weights == "rows":
                found.append(
                    f"{plan.layout}: rank 0 holds {plan.skew:.2f} times an equal part, because "
                    f"FSDP deals whole rows, and {plan.layout.ways} divides the rows of few "
                    "matrices; hsdp deals them to fewer ranks."
                )
        return found

    def row(self, plan: Plan) -> dict[str, Any]:
        """A plan as JSON: bytes, seconds, and what follows from them."""
        run, step = self.planner.run, plan.step
        days = run.steps * plan.seconds / 86_400
        speed = run.global_batch / step.total
        return {
            "strategy": plan.layout.strategy,
            "layout": str(plan.layout),
            "fits": plan.fits,
            "why": self.why(plan),
            "slots": plan.share,
            "micro_batch": plan.micro,
            "recompute": plan.recompute,
            "memory": plan.memory.kinds,
            "memory_gpu": plan.memory.gpu,
            "memory_host": plan.memory.host,
            "capacity": plan.capacity,
            "skew": plan.skew,
            "messages": [
                {
                    "collective": m.collective,
                    "of": m.what,
                    "ranks": m.ways,
                    "bytes": m.sent,
                    "calls": m.calls,
                    "hidden": m.hidden,
                }
                for m in plan.traffic
            ],
            "step": {
                "seconds": step.total,
                "arithmetic": step.arithmetic,
                "hidden": step.hidden,
                "exposed": step.exposed,
                "optimizer": step.optimizer,
                "offload": step.offload,
            },
            "samples_per_second": speed,
            "bytes_per_second": speed * self.planner.assumed.sample,
            "days": days,
            "gpu_hours": days * 24 * self.planner.gpus,
            "goodput": plan.faults.goodput,
            "checkpoint": {
                "bytes": self.planner.checkpoint,
                "every_seconds": plan.faults.every,
                "stall_seconds": plan.faults.stall,
                "write_seconds": plan.faults.write,
                "between_faults_seconds": plan.faults.between,
            },
        }
