"""Bytes on a GPU, by kind, of a run under a layout: closed forms beside a trace of its activations.

What DeepSpeed keeps is by its stages' definition (Rajbhandari et al. 2020, arXiv:1910.02054).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vtx_scale.planner.activations import Trace
from vtx_scale.planner.layout import Cut, Layout
from vtx_scale.planner.shapes import ROOT, Parameter, held, owners, rows
from vtx_scale.specs.run import Optimizer
from vtx_scale.trainer.adafactor import factored

# bytes of a number's state beside its float32 value
STATE = {"adamw": 8, "sgd": 4, "lookahead": 8, "muon": 8}
# what of a rank's states lies on the host: parameters in every role, where they are cut
AWAY = {
    "none": (),
    "optimizer": ("optimizer",),
    "all": ("optimizer", "parameters", "working copies", "frozen", "followers"),
}
BUCKET = 1 << 24  # numbers in a bucket of ZeRO's, as `vtx_scale.strategies` asks for


@dataclass(frozen=True)
class Numbers:
    """Bytes of a number: weight as it is trained, compute as products read it."""

    weight: int
    compute: int

    @staticmethod
    def of(weights: torch.dtype, compute: torch.dtype | None) -> "Numbers":
        return Numbers(weights.itemsize, (compute or weights).itemsize)


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank. kinds: on the GPU, which add up to `gpu`, the most at once. host: what is
    offloaded.
    """

    kinds: dict[str, int]
    host: int = 0

    @property
    def gpu(self) -> int:
        return sum(self.kinds.values())


def fullest(
    parameters: Sequence[Parameter], layout: Layout, optim: Optimizer, numbers: Numbers
) -> int:
    """Which of the ranks that share the state has most of it: the first, but for whole tensors."""
    if layout.kind.state != "tensors":
        return 0
    trained = [p for p in parameters if p.role == "trained"]
    loads = [0] * layout.ways
    for p, owner in zip(trained, owners((p.numel for p in trained), layout.ways), strict=True):
        loads[owner] += state_of([p], None, 1, 0, 1, optim, numbers)
    return loads.index(max(loads))


def states(
    parameters: Sequence[Parameter],
    layout: Layout,
    optim: Optimizer,
    numbers: Numbers,
    index: int = 0,
) -> dict[str, int]:
    """Bytes that a rank keeps from step to step and needs for one: parameters, followers,
    gradients and the optimizer's state, before any is offloaded.
    """
    kind, ways, tp = layout.kind, layout.ways, layout.tp
    by = {
        role: [p for p in parameters if p.role == role]
        for role in ("trained", "frozen", "follower")
    }
    trained = by["trained"]
    counts = {role: held(some, kind.weights, ways, index, tp) for role, some in by.items()}
    gradients = held(trained, kind.gradients, ways, index, tp)
    state = state_bytes(trained, layout, optim, numbers, index)
    copies = 0
    if kind.masters:  # the optimizer's part in full, beside what the forward pass reads
        state += held(trained, kind.state, ways, index, tp) * numbers.weight
        copies = counts["trained"] * numbers.weight
    return {
        "parameters": 0 if kind.masters else counts["trained"] * numbers.weight,
        "working copies": copies,
        "frozen": counts["frozen"] * numbers.weight,
        "followers": counts["follower"] * numbers.weight,
        "gradients": gradients * numbers.weight,
        "optimizer": state,
    }


def state_bytes(
    trained: Sequence[Parameter], layout: Layout, optim: Optimizer, numbers: Numbers, index: int
) -> int:
    """Of the optimizer's moments and of the average of the weights, masters aside.

    Raises LookupError for an optimizer that the planner does not know.
    """
    cut, ways, tp = layout.kind.state, layout.ways, layout.tp
    if cut != "tensors":
        return state_of(trained, cut, ways, index, tp, optim, numbers)
    owned = owners((p.numel for p in trained), ways)
    here = [p for p, owner in zip(trained, owned, strict=True) if owner == index]
    return state_of(here, None, 1, 0, tp, optim, numbers)


def state_of(
    trained: Sequence[Parameter],
    cut: Cut | None,
    ways: int,
    index: int,
    tp: int,
    optim: Optimizer,
    numbers: Numbers,
) -> int:
    """The same where part `index` of `ways` has its share of every tensor."""
    average = held(trained, cut, ways, index, tp) * numbers.weight if optim.average else 0
    if optim.kind == "adafactor":
        if cut not in (None, "rows"):  # the moment alone: the strategy refuses the rest
            return average + held(trained, cut, ways, index, tp) * 2
        parts = ways if cut else 1
        factors = (adafactor_bytes(p.under_tp(tp), parts, index, numbers) for p in trained)
        return average + sum(factors)
    if optim.kind not in STATE:
        raise LookupError(f"the planner does not know the state of optim.kind={optim.kind}")
    each = STATE[optim.kind] * numbers.weight // (8 if optim.moments == "bfloat16" else 4)
    state = average + held(trained, cut, ways, index, tp) * each
    if optim.kind == "muon":  # one moment of a matrix, not two
        state -= held([p for p in trained if p.matrix], cut, ways, index, tp) * (each // 2)
    return state


def adafactor_bytes(shape: tuple[int, ...], ways: int, index: int, numbers: Numbers) -> int:
    """A moment in bfloat16, and sums of squares along two dimensions in place of one a number;
    rows are cut, a sum over cut rows is whole.
    """
    here = (rows(shape[0], ways, index), *shape[1:])
    dims = factored(torch.Size(shape))
    if dims is None:
        return math.prod(here) * (2 + numbers.weight)
    a, b = dims
    row = math.prod(n for d, n in enumerate(here) if d != b)
    column = math.prod(n for d, n in enumerate(here if a else shape) if d != a)
    return math.prod(here) * 2 + (row + column) * numbers.weight


def unit_bytes(parameters: Sequence[Parameter], tp: int, numbers: Numbers) -> dict[int, int]:
    """Unit -> bytes of its parameters gathered for products."""
    sizes: dict[int, int] = {}
    for p in parameters:
        each = numbers.weight if p.float32 else numbers.compute
        sizes[p.unit] = sizes.get(p.unit, 0) + math.prod(p.under_tp(tp)) * each
    return sizes


@dataclass(frozen=True)
class Gathered:
    """What comes and goes with the units while a step is computed, where weights are cut.

    root: what lies outside of all units, which stays gathered. live: of units, those that are there
    at once. reduced: the gradients of a unit and their copy in the order of the ranks, as they are
    added up; root_reduced: those of the root, at the end.
    """

    root: int = 0
    live: int = 0
    reduced: int = 0
    root_reduced: int = 0


def gathered(
    parameters: Sequence[Parameter], layout: Layout, numbers: Numbers, overlap: bool
) -> Gathered:
    """overlap: the next unit is gathered while one is computed, as on a GPU."""
    if layout.kind.weights is None or (layout.ways == 1 and layout.offload != "all"):
        return Gathered()
    if not layout.kind.casts:  # gathered as they are kept, and cast by autocast
        numbers = Numbers(numbers.weight, numbers.weight)
    units = unit_bytes(parameters, layout.tp, numbers)
    trained = unit_bytes([p for p in parameters if p.role == "trained"], layout.tp, numbers)
    root, root_gradient = units.pop(ROOT, 0), trained.pop(ROOT, 0)
    both = 1 + numbers.weight / numbers.compute  # gradients travel in float32
    return Gathered(
        root,
        (2 if overlap else 1) * max(units.values(), default=0),
        math.ceil(both * max(trained.values(), default=0)),
        math.ceil(both * root_gradient),
    )


def memory(
    parameters: Sequence[Parameter],
    layout: Layout,
    optim: Optimizer,
    numbers: Numbers,
    trace: Trace,
    micros: int,
    overlap: bool = True,
) -> Memory:
    """The fullest rank's bytes, at the most that is alive at once.

    trace: of one micro-batch; micros: of these a step. overlap: as `gathered` says.
    """
    kind = layout.kind
    kinds = states(parameters, layout, optim, numbers, fullest(parameters, layout, optim, numbers))
    trained = [p for p in parameters if p.role == "trained"]
    whole = held(trained, None, 1, tp=layout.tp) * numbers.weight
    units = gathered(parameters, layout, numbers, overlap)
    away: tuple[str, ...] = AWAY[layout.offload]
    if away and kind.weights is not None:  # a gradient that is cut goes where its master is
        away += ("gradients",)
    host = sum(kinds[name] for name in away)
    kinds |= dict.fromkeys(away, 0)
    steady = sum(kinds.values()) - kinds["gradients"]
    kinds["working copies"] += trace.casts
    kinds["live units"] = units.root + units.live
    kinds["buffers"] = max(units.reduced, units.root_reduced)
    if kind.weights is None:
        copies = 1 + layout.sends_copies
        kinds["buffers"] += whole * layout.sends_copies
        if kind.masters:  # DeepSpeed moves gradients through two buckets to their interval
            bucket = 2 * min(whole, BUCKET * numbers.weight)
            kinds["buffers"] += bucket
            part, last = 1 / layout.ways, trace.path[-1]
            passing = max(trace.peak(part), round(last[1] + part * last[0]) + bucket)
        elif micros == 1:
            passing = trace.peak(copies)
        else:
            passing = whole + trace.peak(copies - 1)
    else:
        passing = passing_through(trace, units, numbers, layout, whole if micros > 1 else 0)
        if kind.casts and layout.ways > 1 and micros > 1:
            kinds["buffers"] += whole  # gradients stay whole until the last micro-batch
    if kind.masters and kind.weights is not None:
        bucket = 2 * min(whole, BUCKET * numbers.weight)
        kinds["buffers"] += bucket
        passing += bucket
    batch = trace.batch * micros
    kinds["activations"] = batch + trace.alone - trace.casts
    kinds["not at once"] = steady + passing + batch - sum(kinds.values())
    return Memory({name: size for name, size in kinds.items() if size}, host)


def passing_through(
    trace: Trace, units: Gathered, numbers: Numbers, layout: Layout, kept: int
) -> int:
    """The most at once of activations, units and gradients where weights are cut. kept: bytes of
    gradients of the micro-batches before.
    """
    if layout.ways == 1 and layout.offload != "all":
        return trace.peak(1) + kept
    share = numbers.weight / (numbers.compute if layout.kind.casts else numbers.weight)
    share = share / layout.ways if layout.offload == "none" else 0  # else they go to the host
    last = trace.path[-1]
    return (
        units.root
        + kept
        + max(
            trace.peak(0),  # between the units, where the loss is
            trace.inside + units.live,
            trace.peak(share, first=False) + units.live + units.reduced,
            round(last[1] + share * last[0]) + units.root_reduced,
        )
    )
