"""A stranger's objective: say an image's mean colour, and agree with one's own moving average.

One file, no tree.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from vtx_scale.blocks.rules import Rule, normal, zeros
from vtx_scale.data_pipeline.decode import decode_image, resize_crop
from vtx_scale.data_pipeline.errors import BadSample
from vtx_scale.objectives.base import Follower, Objective
from vtx_scale.specs.objective import ObjectiveSpec
from vtx_scale.specs.run import Checkpoint, Data, Evaluation, Optimizer, Run, System


@dataclass(frozen=True, kw_only=True)
class Colour(ObjectiveSpec):
    build: ClassVar[str] = "average_colour:ColourObjective"

    width: int = 32
    momentum: float = 0.9


@dataclass
class ColourReader:
    """image (16, 16, 3) uint8, target (3,) float32 in [0, 1]; training crops a keyed quarter."""

    train: bool

    def blank(self):
        return {"image": np.zeros((16, 16, 3), np.uint8), "target": np.zeros(3, np.float32)}

    def __call__(self, members, draw):
        if "jpg" not in members:
            raise BadSample("member_missing", "jpg")
        image = decode_image(members["jpg"])
        h, w = image.shape[:2]
        top, left = (draw(0, 2) * (h // 2, w // 2)).astype(int) if self.train else (h // 4, w // 4)
        part = resize_crop(image, (int(top), int(left), h // 2, w // 2), 16)
        return {"image": part, "target": image.mean((0, 1)).astype(np.float32) / 255}


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.last = nn.Linear(16 * 16 * 3, width), nn.Linear(width, 3)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))


class ColourObjective(Objective):
    parameter_rules = (
        Rule(r".*bias", zeros),
        Rule(r".*weight", normal(lambda shape: shape[1] ** -0.5)),
    )

    def __init__(self, spec, context):
        super().__init__(spec, context)
        self.student, self.teacher = Net(spec.width), Net(spec.width).requires_grad_(False)
        self.probes = {"colour": self.colour}

    @staticmethod
    def reader(spec, data, train):
        return ColourReader(train)

    def units(self):
        return [self.student, self.teacher]

    def followers(self):
        return [Follower(self.teacher, self.student, lambda step: self.spec.momentum)]

    def forward(self, batch, step=0):
        x = batch["image"].to(self.student.last.weight.dtype).flatten(1) / 127.5 - 1
        answer, kept = self.student(x), self.teacher(x).detach()
        loss_n = (answer - batch["target"].to(x.dtype)).square().sum(1) + 0.1 * (
            answer - kept
        ).square().sum(1)
        return torch.where(batch.valid, loss_n, 0).sum(), {
            "apart": (answer - kept).detach().abs().max()
        }

    def colour(self, pixels):
        return self.context.run_probe(
            lambda x: self.teacher(x.float().flatten(1) / 127.5 - 1), torch.as_tensor(pixels)
        )


LOWER = ("error",)  # what checkpoint.best may name


def colour_error(probes, batches, classes, ranks):
    """Mean absolute error of the teacher."""
    total = torch.zeros(2, dtype=torch.float64)
    for batch in batches:
        error_n = (probes["colour"](batch["image"]) - batch["target"]).abs().mean(1)
        total += torch.stack([error_n[batch.valid].double().sum(), batch.valid.sum().double()])
    total = ranks.sum(total)
    return {"error": (total[0] / total[1]).item(), "samples": int(total[1])}


def average_colour():
    """The mean colour of shapes."""
    return Run(
        objective=Colour(),
        data=Data(shards="toy"),
        optim=Optimizer(lr=3e-3, clip=1.0),
        steps=300,
        global_batch=16,
        system=System(workers=0),
        checkpoint=Checkpoint(every=100),
        evaluate=(Evaluation(name="average_colour:colour_error"),),
    )


def average_colour_smoke():
    from dataclasses import replace

    return replace(average_colour(), steps=12, checkpoint=Checkpoint(every=4))
