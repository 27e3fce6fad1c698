"""A stranger's backbone: ConvMixer (Trockman & Kolter 2022, arXiv:2201.09792),
with its name table and recipes.

One file, no tree.

B images, C width. Patches, then blocks of a depthwise convolution beside a residual path
and a pointwise one, each followed by GELU and batch norm; the mean over places. Goes to and
from timm's ConvMixer.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch.nn.functional as F
from torch import nn

from vtx_scale.blocks.norm import NORMS, BatchNorm
from vtx_scale.blocks.rules import Rule, fan_in, uniform
from vtx_scale.interop.files import FILES, read_weights, write_folder
from vtx_scale.interop.rename import Line, from_foreign, to_foreign
from vtx_scale.interop.resnet import batch_norm, with_counts, without_counts
from vtx_scale.launch import recipes
from vtx_scale.specs.network import Backbone
from vtx_scale.specs.run import Run


@dataclass(frozen=True, kw_only=True)
class ConvMixerConfig(Backbone):
    build: ClassVar[str] = "convmixer:ConvMixer"
    interop: ClassVar[str] = "convmixer"

    width: int = 32
    depth: int = 2
    kernel: int = 3
    patch: int = 4
    resolution: int = 32

    @property
    def least(self):
        return self.patch

    @property
    def strides(self):
        return (self.patch,)

    @property
    def widths(self):
        return (self.width,)

    @property
    def couples(self):
        return True


class Block(nn.Module):
    def __init__(self, width, kernel):
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm1 = BatchNorm(width)
        self.pointwise = nn.Conv2d(width, width, 1)
        self.norm2 = BatchNorm(width)

    def forward(self, x, slots=None):
        x = x + self.norm1(F.gelu(self.depthwise(x)), slots)
        return self.norm2(F.gelu(self.pointwise(x)), slots)


class ConvMixer(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.spec = spec
        self.patch = nn.Conv2d(3, spec.width, spec.patch, spec.patch)
        self.norm = BatchNorm(spec.width)
        self.blocks = nn.ModuleList(Block(spec.width, spec.kernel) for _ in range(spec.depth))
        self.head = nn.Linear(spec.width, spec.classes) if spec.classes else None
        default = uniform(lambda shape: fan_in(shape) ** -0.5)  # torch's
        self.parameter_rules = (
            *NORMS,
            Rule(r"head\..*", uniform(spec.width**-0.5), group="head"),
            Rule(r"patch\.bias", uniform((3 * spec.patch**2) ** -0.5)),
            Rule(r".*depthwise\.bias", uniform(1 / spec.kernel)),
            Rule(r".*pointwise\.bias", uniform(1 / math.sqrt(spec.width))),
            Rule(r".*", default),
        )

    def units(self):
        return self.blocks

    def layer(self, name):
        part, _, rest = name.partition(".")
        return (
            1 + int(rest.partition(".")[0])
            if part == "blocks"
            else 0
            if part != "head"
            else 1 + self.spec.depth
        )

    def pyramid(self, x, slots=None):
        x = self.norm(F.gelu(self.patch(x)), slots)
        for block in self.blocks:
            x = block(x, slots)
        return [x]

    def features(self, x, slots=None):
        return self.pyramid(x, slots)[-1].mean((2, 3))

    def forward(self, x, slots=None):
        x = self.features(x, slots)
        return self.head(x) if self.head is not None else x


TIMM = [
    Line("patch.{p}", "stem.0.{p}"),
    *batch_norm("norm", "stem.2"),
    Line("blocks.{n}.depthwise.{p}", "blocks.{n}.0.fn.0.{p}"),
    *batch_norm("blocks.{n}.norm1", "blocks.{n}.0.fn.2"),
    Line("blocks.{n}.pointwise.{p}", "blocks.{n}.1.{p}"),
    *batch_norm("blocks.{n}.norm2", "blocks.{n}.3"),
    Line("head.{p}", "head.{p}"),
]


def export_network(spec, state, to, out, pixels):
    if to != "timm":
        raise ValueError(f"ConvMixer goes to timm, not to {to}")
    return write_folder(out, {"model.safetensors": with_counts(to_foreign(TIMM, state))}, {})


def import_network(path, spec):
    state = without_counts(read_weights(path, FILES))
    return state if "patch.weight" in state else from_foreign(TIMM, state)


def published():
    """The paper's, with 1000 classes."""
    big = ConvMixerConfig(width=768, depth=32, kernel=7, patch=7, resolution=224, classes=1000)
    return {"convmixer_768_32": big}


def tiny(recipe: str, **changes) -> Run:
    """The smoke size of a recipe of the house, with this network in place of its own."""
    run = recipes.find(recipe, smoke=True)
    return replace(run, objective=replace(run.objective, **changes), steps=6)


def supervised() -> Run:
    """Labels."""
    return tiny("resnet50_imagenet", net=ConvMixerConfig(classes=12))


def distilled() -> Run:
    """A student and its teacher."""
    return tiny("deit_s16_distilled", net=ConvMixerConfig(classes=12))


def dino() -> Run:
    """A student and its moving average, over crops of two sizes."""
    return tiny("dino_resnet50", net=ConvMixerConfig())


def clip() -> Run:
    """The image tower of a CLIP."""
    return tiny("clip_vit_b32", image=ConvMixerConfig(width=48))
