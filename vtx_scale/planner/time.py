"""Seconds of a step, from tabled peaks times an efficiency that is named, and what a run costs
with faults (Young 1974; Daly 2006).

Collectives are rings. A group of which k ranks stand in each node crosses between nodes on k
adapters at once, one beside each GPU. What is hidden goes on beside the arithmetic, all of it at
once with none to spare: a step takes the longer of the two, and what is not hidden on top.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from vtx_scale.planner.hardware import GPU, Assumed
from vtx_scale.planner.traffic import Message


def seconds_of(message: Message, gpu: GPU, assumed: Assumed) -> float:
    """On the wire: bytes over the narrowest link, and a ring's hops for each call."""
    node = assumed.gpus_a_node
    inside = min(message.ways, max(1, node // message.stride))
    nodes = math.ceil(message.ways / inside)
    link = gpu.nvlink if nodes == 1 else min(gpu.nvlink, inside * gpu.network)
    hops = (message.ways - nodes) * assumed.hop_inside + (nodes - 1) * assumed.hop_between
    if nodes == 1:
        hops = (message.ways - 1) * assumed.hop_inside
    if message.collective == "send":
        hops = assumed.hop_inside if nodes == 1 else assumed.hop_between
    passes = message.sent * message.ways / (message.size * (message.ways - 1))
    return message.sent / (link * assumed.link) + message.calls * passes * hops


@dataclass(frozen=True)
class Step:
    """Seconds of a step by what they go to. hidden: of collectives beside the arithmetic;
    exposed: of those that the step waits for; offload: to and from the host.
    """

    arithmetic: float
    hidden: float
    exposed: float
    optimizer: float
    offload: float = 0.0

    @property
    def waits(self) -> float:
        """For messages."""
        return self.exposed + max(0.0, self.hidden - self.arithmetic)

    @property
    def total(self) -> float:
        return self.arithmetic + self.waits + self.optimizer + self.offload


def step_of(
    operations: float,
    single: bool,
    traffic: Iterable[Message],
    touched: float,
    moved: float,
    gpu: GPU,
    assumed: Assumed,
) -> Step:
    """operations: of a rank in a step, those computed again too. single: in float32. touched:
    bytes that the optimizer reads and writes; moved: bytes between GPU and host.
    """
    peak = gpu.single if single else gpu.half
    hidden = exposed = 0.0
    for message in traffic:
        took = seconds_of(message, gpu, assumed)
        hidden, exposed = (hidden + took, exposed) if message.hidden else (hidden, exposed + took)
    return Step(
        operations / (peak * assumed.efficiency),
        hidden,
        exposed,
        touched / gpu.bandwidth,
        moved / gpu.host,
    )


@dataclass(frozen=True)
class Faults:
    """Checkpoints among faults. between: seconds between two faults; stall, write: seconds that a
    save stops the steps, and until it is whole; every: seconds between saves; goodput: the share of
    time that goes into steps which count.
    """

    between: float
    stall: float
    write: float
    every: float
    goodput: float


def faults_of(gpus: int, writers: int, state: float, gpu: GPU, assumed: Assumed) -> Faults:
    """state: bytes of a checkpoint; writers: ranks that share it. A save is staged to the host,
    then written beside the steps; what is lost with a fault is half an interval, a write, and the
    restart, which reads it all.
    """
    nodes = math.ceil(writers / assumed.gpus_a_node)
    between = assumed.fault_hours * 3600 / gpus
    stall = state / writers / gpu.host
    write = state / nodes / assumed.storage
    every = max(math.sqrt(2 * stall * between), write)
    lost = every / 2 + write + assumed.restart + write
    goodput = max(0.0, (1 - stall / every) * (1 - lost / between))
    return Faults(between, stall, write, every, goodput)
