"""A stranger's objective that is all parameter rules: a part for each thing that a line can say."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from vtx_scale.blocks.rules import Rule, constant, normal, zeros
from vtx_scale.objectives.base import Objective
from vtx_scale.objectives.image_reader import ImageReader
from vtx_scale.specs.objective import ObjectiveSpec
from vtx_scale.specs.run import Checkpoint, Data, Optimizer, Run, Schedule, System

SIDE, WIDTH = 8, 6
FROZEN = 2  # steps
LIMITS = (-0.25, 0.5)


@dataclass(frozen=True, kw_only=True)
class RuledSpec(ObjectiveSpec):
    build: ClassVar[str] = "ruled:Ruled"


class Telling(nn.Linear):
    """Remembers how many bytes a number of its weight had inside its forward pass."""

    size = 0

    def forward(self, x):
        self.size = self.weight.dtype.itemsize
        return super().forward(x.to(self.weight.dtype))


class Ruled(Objective):
    probes: ClassVar = {}
    parameter_rules = (
        Rule(r"high", constant(3.0), limits=LIMITS),
        Rule(r"low", constant(-3.0), limits=LIMITS),
        Rule(r".*\.bias", zeros),
        Rule(r"still\..*", normal(0.1), lr_scale=0.0),
        Rule(r"late\..*", normal(0.1), frozen_until=FROZEN),
        Rule(r"exact\..*", normal(0.1), keep_float32=True),
        Rule(r".*", normal(0.1)),
    )

    def __init__(self, spec, context):
        super().__init__(spec, context)
        self.body, self.exact = Telling(3 * SIDE**2, WIDTH), Telling(WIDTH, WIDTH, bias=False)
        self.still, self.late = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, 2, bias=False)
        self.high, self.low = (nn.Parameter(torch.empty(1)) for _ in range(2))

    @staticmethod
    def reader(spec, data, train):
        return ImageReader(SIDE, data, train)

    def units(self):
        return [self.body, self.exact, self.still, self.late]

    def forward(self, batch, step=0):
        x = batch["image"].to(self.high.dtype).flatten(1) / 127.5 - 1
        y = self.late(self.still(self.exact(torch.tanh(self.body(x)))))
        loss_n = y.float().square().sum(1) - self.high + self.low  # pulls both out of their limits
        sizes = {name: loss_n.new_tensor(getattr(self, name).size) for name in ("body", "exact")}
        return torch.where(batch.valid, loss_n, 0).sum(), sizes


def ruled_smoke():
    """Four steps."""
    return Run(
        objective=RuledSpec(),
        data=Data(shards="toy"),
        system=System(workers=0),
        optim=Optimizer(lr=1e-2, decay=0.1, clip=1.0),
        schedule=Schedule(warmup=0),
        steps=4,
        global_batch=8,
        checkpoint=Checkpoint(every=0),
    )
