"""DINO (Caron et al. 2021, arXiv:2104.14294): a student learns to match its own moving average
across crops of a picture.

n slots, G = 2 global and L local crops, V = G + L views, K prototypes. The student sees all
crops, each size in one pass; the teacher the global ones. Targets are centred by a running mean
of the teacher's answers over all ranks and sharpened. The rows are independent given the centre,
so the batch may be cut into micro-batches, but not where batch statistics couple it (ResNets,
batch norm in the head). A step that did not count moves neither centre nor teacher nor
statistics. Departs from the authors' code: schedules go by steps throughout, where theirs change
the temperature once an epoch.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtx_scale.backbones import AttendingNetwork, build_network
from vtx_scale.blocks.autocast import no_autocast
from vtx_scale.blocks.norm import NORMS, BatchNorm
from vtx_scale.blocks.rules import Rule, Rules, normal, ones, under, uniform, zeros
from vtx_scale.blocks.slots import SlotContext
from vtx_scale.data_pipeline import members as member_of
from vtx_scale.data_pipeline.augment.multicrop import MultiCrop
from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.data_pipeline.crops import Decode, decode_crops
from vtx_scale.data_pipeline.read import Draw, Row
from vtx_scale.objectives.base import Context, Follower, Objective
from vtx_scale.objectives.image_reader import ImageReader
from vtx_scale.objectives.pixels import normalised
from vtx_scale.objectives.probes import image_probes, probe
from vtx_scale.specs.dino import DinoConfig
from vtx_scale.specs.network import Backbone
from vtx_scale.specs.run import Data


@dataclass
class DinoReader:
    """globals (2, S, S, 3), locals (L, s, s, 3) uint8, label () int64."""

    crops: MultiCrop
    decode: Decode = "exact"

    def blank(self) -> Row:
        S, s = self.crops.global_size, self.crops.local_size
        return {
            "globals": np.zeros((2, S, S, 3), np.uint8),
            "locals": np.zeros((self.crops.locals, s, s, 3), np.uint8),
            "label": np.array(-1, np.int64),
        }

    def __call__(self, members: dict[str, bytes], draw: Draw) -> Row:
        drawn = self.crops.drawn(draw)
        pixels, boxes = decode_crops(
            member_of.image(members), lambda h, w: self.crops.boxes(h, w, drawn), self.decode
        )
        large, small = self.crops.made(pixels, boxes, drawn)
        known = member_of.labels(members)
        return {
            "globals": large,
            "locals": small,
            "label": np.array(known[0] if known else -1, np.int64),
        }


class Head(nn.Module):
    """(B, C) -> (B, K): three layers, unit length, then prototypes of unit length or with a
    learned gain each.
    """

    def __init__(self, width: int, spec: DinoConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, spec.hidden)
        self.fc2 = nn.Linear(spec.hidden, spec.hidden)
        self.fc3 = nn.Linear(spec.hidden, spec.bottleneck)
        self.norm1 = BatchNorm(spec.hidden) if spec.head_norm else None
        self.norm2 = BatchNorm(spec.hidden) if spec.head_norm else None
        self.prototypes = nn.Parameter(torch.empty(spec.prototypes, spec.bottleneck))
        self.gain = None if spec.fixed_gain else nn.Parameter(torch.empty(spec.prototypes, 1))

    def forward(self, x: Tensor, slots: SlotContext | None = None) -> Tensor:
        for layer, norm in ((self.fc1, self.norm1), (self.fc2, self.norm2)):
            x = layer(x)
            x = F.gelu(norm(x, slots) if norm is not None else x)
        weight = F.normalize(self.prototypes, dim=-1)
        return F.linear(
            F.normalize(self.fc3(x), dim=-1), weight if self.gain is None else weight * self.gain
        )


def head_rules(spec: DinoConfig) -> Rules:
    """As the network's family has its dense layers, biases zero;
    the last layer as torch's default, and frozen at first.
    """
    dense = normal(lambda shape: shape[1] ** -0.5) if spec.net.init == "xavier" else normal(0.02)
    return (
        Rule(r"prototypes", uniform(lambda shape: shape[1] ** -0.5), frozen_until=spec.frozen),
        Rule(r"gain", ones, frozen_until=spec.frozen),
        *NORMS,
        Rule(r".*bias", zeros),
        Rule(r".*", dense),
    )


class Branch(nn.Module):
    """A network and its head."""

    def __init__(self, spec: DinoConfig, net: Backbone) -> None:
        super().__init__()
        self.net = build_network(net)
        self.head = Head(net.width, spec)

    def units(self) -> list[nn.Module]:
        return [*self.net.units(), self.head]


class Dino(Objective):
    def __init__(self, spec: DinoConfig, context: Context) -> None:
        super().__init__(spec, context)
        self.spec: DinoConfig = spec
        self.student = Branch(spec, spec.net)
        self.teacher = Branch(spec, spec.net.calm()).requires_grad_(False)
        self.register_buffer("centre", torch.empty(spec.prototypes))
        self.centre: Tensor
        # (2 K + 1,) of each micro-batch: sums of raw and final answers, and their number
        self.answers: list[Tensor] = []
        self.probes = {**image_probes(self, self.teacher.net, spec.pixels)}
        if spec.net.attends:
            self.probes |= {"features_linear": probe(self, spec.pixels, self.linear_probe_features)}
        branch = (
            *under("net.", self.student.net.parameter_rules, decay=None),
            *under("head.", head_rules(spec), group="head"),
        )
        self.parameter_rules = (
            Rule(r"centre", zeros),
            *under("student.", branch),
            *under("teacher.", branch, frozen_until=0),
        )

    @staticmethod
    def reader(spec: DinoConfig, data: Data, train: bool) -> ImageReader | DinoReader:
        size, c = spec.net.resolution, spec.crops
        if not train:
            return ImageReader(size, data, train, masks=True)
        return DinoReader(
            MultiCrop(
                global_size=size,
                local_size=c.local_size,
                locals=c.locals,
                global_scale=c.global_scale,
                local_scale=c.local_scale,
                ratio=data.ratio,
                flip=c.flip,
                jitter=c.jitter,
                jitter_p=c.jitter_share,
                grey=c.grey,
                blur=c.blur,
                solarise=c.solarise,
            ),
            data.decode,
        )

    def units(self) -> Iterable[nn.Module]:
        return [*self.student.units(), *self.teacher.units()]

    def followers(self) -> Iterable[Follower]:
        return [Follower(self.teacher, self.student, self.momentum)]

    def momentum(self, step: int) -> float:
        """From the recipe's to 1 over the run, on half a cosine."""
        return 1 - (1 - self.spec.momentum) * 0.5 * (
            1 + math.cos(math.pi * step / self.context.steps)
        )

    def temperature(self, step: int) -> float:
        """The teacher's."""
        s = self.spec
        done = min(1.0, step / s.warm_steps) if s.warm_steps else 1.0
        return s.warm_temperature + done * (s.teacher_temperature - s.warm_temperature)

    def prepare(self, batch: Batch, step: int) -> Batch:
        self.answers.clear()  # of a step that did not count
        return batch

    def forward(self, batch: Batch, step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        spec, n = self.spec, len(batch)
        dtype = next(self.parameters()).dtype

        def see(branch: Branch, crops: Tensor, call: str, head: bool = True) -> Tensor:
            """(n, v, S, S, 3) -> (n v, K), or (n v, C) without the head."""
            slots = self.context.slots(batch, step, crops.shape[1], call)
            y = branch.net(normalised(crops.flatten(0, 1), spec.pixels, dtype), slots)
            out: Tensor = branch.head(y, slots) if head else y
            return out

        with torch.no_grad():
            seen = see(self.teacher, batch["globals"], "teacher")
            teacher_nGK = torch.unflatten(seen, 0, (n, 2))
        parts = [
            torch.unflatten(see(self.student, batch[name], name, head=False), 0, (n, -1))
            for name in ("globals", "locals")
            if batch[name].shape[1]
        ]
        student_nVC = torch.cat(parts, dim=1)  # one call of the head for all crops
        V = student_nVC.shape[1]
        student_nVK = self.student.head(
            student_nVC.flatten(0, 1), self.context.slots(batch, step, V, "head")
        ).unflatten(0, (n, V))
        with no_autocast(student_nVK.device):
            loss_n, sharp_n = self.matched(teacher_nGK, student_nVK, batch.valid, step)
        loss = torch.where(batch.valid, loss_n, torch.zeros_like(loss_n)).sum()
        sharp = torch.where(
            batch.valid, sharp_n, torch.zeros_like(sharp_n)
        ).sum() / batch.valid.sum().clamp(min=1)
        return loss, {"teacher_entropy": sharp, "centre_norm": self.centre.norm()}

    def matched(
        self, teacher_nGK: Tensor, student_nVK: Tensor, valid_n: Tensor, step: int
    ) -> tuple[Tensor, Tensor]:
        """(n,) the loss, and the mean entropy of a slot's targets;
        the answers are summed for the centre.

        At least float32.
        """
        wide = torch.promote_types(teacher_nGK.dtype, torch.float32)
        with torch.no_grad():
            teacher_nGK = teacher_nGK.to(wide)
            target_nGK = ((teacher_nGK - self.centre) / self.temperature(step)).softmax(-1)
            weight_n = valid_n.to(wide)
            rows = (2 * weight_n.sum()).reshape(1)
            self.answers.append(
                torch.cat(
                    [torch.einsum("ngk,n->k", x, weight_n) for x in (teacher_nGK, target_nGK)]
                    + [rows]
                )
            )
            sharp_n = entropy(target_nGK).mean(1)
        log_nVK = (student_nVK.to(wide) / self.spec.student_temperature).log_softmax(-1)
        cross_nGV = -torch.einsum("ngk,nvk->ngv", target_nGK, log_nVK)
        other_GV = 1 - torch.eye(2, student_nVK.shape[1], dtype=wide, device=cross_nGV.device)
        return (cross_nGV * other_GV).sum((1, 2)) / other_GV.sum(), sharp_n

    @torch.no_grad()
    def update_buffers(self, step: int) -> dict[str, Tensor]:
        """The centre moves to the mean of the teacher's raw answers over all
        ranks and micro-batches.

        Logged: the entropy of the mean of its final ones, in nats; ln K where all prototypes are
        used alike, 0 for one.
        """
        total = self.context.ranks.sum(torch.stack(self.answers).sum(0))
        self.answers.clear()
        raw, final = (total[:-1] / total[-1]).chunk(2)
        self.centre.lerp_(raw.to(self.centre.dtype), 1 - self.spec.centre_momentum)
        return {"marginal_entropy": entropy(final)}

    def linear_probe_features(self, x: Tensor) -> Tensor:
        """(B, F) for a linear probe: class tokens of the last blocks,
        and the mean of patches where the recipe says so.
        """
        net = cast(AttendingNetwork, self.teacher.net)
        kept = [net.norm(t) for t in net.tokens(x, keep=self.spec.last_blocks)]
        means = [kept[-1][:, net.extra :].mean(1)] if self.spec.patch_mean else []
        return torch.cat([t[:, 0] for t in kept] + means, dim=1)


def entropy(p: Tensor) -> Tensor:
    """Of distributions along the last dimension, in nats."""
    out: Tensor = torch.special.entr(p).sum(-1)
    return out
