"""What a rank sends in a step, by collective: closed forms.

A collective over W ranks of a tensor of B bytes puts (W - 1) / W B on a rank's link where it
gathers, scatters, reduces or broadcasts, and twice that where it reduces to all.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vtx_scale.planner.activations import TP, Trace
from vtx_scale.planner.layout import Layout
from vtx_scale.planner.memory import Numbers, unit_bytes
from vtx_scale.planner.shapes import ROOT, Parameter

PASSES = {"all-reduce": 2}  # how often a tensor crosses the ring; others once


@dataclass(frozen=True)
class Message:
    """Collectives of one kind in a step, over groups of `ways` ranks that lie `stride` apart.

    size: bytes of the whole tensors that go, all calls together. calls: how many. hidden: computed
    beside; else the step waits.
    """

    collective: str
    what: str
    size: float
    calls: int
    ways: int
    stride: int
    hidden: bool

    @property
    def sent(self) -> float:
        """Bytes that leave this rank."""
        return PASSES.get(self.collective, 1) * self.size * (self.ways - 1) / self.ways


def messages(
    parameters: Sequence[Parameter],
    layout: Layout,
    numbers: Numbers,
    trace: Trace,
    micros: int,
    chunks: int = 1,
) -> list[Message]:
    """All of a step. trace: of one micro-batch; micros: of these a step; chunks: passes of a batch
    that the objective itself cuts and computes twice.
    """
    found = parameter_messages(parameters, layout, numbers, micros, chunks)
    if layout.tp > 1:  # what is whole on the axis keeps to one gradient
        copies = [p for p in parameters if p.role == "trained" and p.split is None]
        size = sum(p.numel for p in copies) * numbers.weight / layout.ways
        found.append(Message("broadcast", "gradients", size, 1, layout.tp, 1, False))
    for collective, (size, calls) in trace.sent.items():
        if collective == TP:
            found.append(
                Message("all-reduce", "layers", size * micros, calls * micros, layout.tp, 1, False)
            )
        else:
            W = layout.data
            whole = float(size * W if collective == "all-gather" else size)
            if collective == "send":  # nothing of it stays here
                whole = size * W / max(1, W - 1)
            found.append(
                Message(
                    *(collective, "batch", whole * micros, calls * micros),
                    *(W, layout.tp, False),
                )
            )
    return [m for m in found if m.ways > 1 and m.size]


def parameter_messages(
    parameters: Sequence[Parameter], layout: Layout, numbers: Numbers, micros: int, chunks: int
) -> list[Message]:
    """Gradients to where they are added up, parameters to where they are read."""
    kind, ways, stride = layout.kind, layout.ways, layout.tp
    trained = [p for p in parameters if p.role == "trained"]
    gradients = sum(math.prod(p.under_tp(layout.tp)) for p in trained) * numbers.weight
    units = len({p.unit for p in parameters})

    def message(collective: str, what: str, size: float, calls: int, hidden: bool) -> Message:
        return Message(collective, what, size, calls, ways, stride, hidden)

    if kind.weights is not None:
        read = numbers if kind.casts else Numbers(numbers.weight, numbers.weight)
        sizes = unit_bytes(parameters, layout.tp, read)
        learnt = unit_bytes(trained, layout.tp, read)
        passes = micros * (2 * chunks if chunks > 1 else 1)
        again = sum(n for unit, n in learnt.items() if unit != ROOT)  # the root stays gathered
        size = passes * sum(sizes.values()) + micros * again
        calls = passes * len(sizes) + micros * len(learnt.keys() - {ROOT})
        reduces = 1 if kind.casts else micros  # DeepSpeed reduces at every micro-batch
        hidden = kind.casts
        found = [
            message("all-gather", "parameters", size, calls, hidden),
            message(
                "reduce-scatter", "gradients", gradients * reduces, len(learnt) * reduces, hidden
            ),
        ]
        if layout.replicas > 1:
            across = Message(
                *("all-reduce", "gradients", gradients / ways, len(learnt)),
                *(layout.replicas, ways * stride, True),
            )
            found.append(across)
        return found
    buckets = max(1, math.ceil(gradients / (25 << 20)))
    if kind.state is None:
        return [message("all-reduce", "gradients", gradients, buckets, True)]
    if kind.state == "tensors":
        return [
            message("reduce", "gradients", gradients, len(trained), True),
            message("broadcast", "parameters", gradients, len(trained), False),
        ]
    times = 1 if kind.gradients is None else micros
    return [
        message("all-reduce", "gradients", gradients * times, units * times, False),
        message("all-gather", "parameters", gradients, 1, False),
    ]
