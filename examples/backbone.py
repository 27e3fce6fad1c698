"""A backbone of one's own: convolutions of stride 2, group norms, the mean over places.

One file, no old one.

    vtx show examples/backbone.py
    vtx train examples/backbone.py:plain_conv --run runs/plain
    vtx export runs/plain --to safetensors exported

`tests/surfaces/stranger/convmixer.py` is one with batch statistics and a name table, so that it
goes to timm.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from vtx_scale.blocks.rules import Rule, fan_in, normal, ones, zeros
from vtx_scale.blocks.slots import SlotContext
from vtx_scale.launch import recipes
from vtx_scale.specs.network import Backbone
from vtx_scale.specs.run import Run
from vtx_scale.specs.supervised import SupervisedConfig

GROUPS = 8


@dataclass(frozen=True, kw_only=True)
class PlainConvConfig(Backbone):
    build: ClassVar[str] = "backbone:PlainConv"

    channels: tuple[int, ...] = (16, 32, 64)
    resolution: int = 32

    @property
    def width(self) -> int:
        return self.channels[-1]

    @property
    def strides(self) -> tuple[int, ...]:
        return tuple(2 << k for k in range(len(self.channels)))

    @property
    def widths(self) -> tuple[int, ...]:
        return self.channels

    def faults(self) -> list[str]:
        odd = [c for c in self.channels if c % GROUPS]
        return [f"channels={odd[0]}: give multiples of {GROUPS}."] if odd else []


class Stage(nn.Module):
    """x (B, inside, H, W) -> (B, outside, H/2, W/2)."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, 3, 2, 1)
        self.norm = nn.GroupNorm(GROUPS, outside)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.norm(self.conv(x)))


class PlainConv(nn.Module):
    def __init__(self, spec: PlainConvConfig) -> None:
        super().__init__()
        self.spec = spec
        inside = (3, *spec.channels[:-1])
        self.stages = nn.ModuleList(Stage(a, b) for a, b in zip(inside, spec.channels, strict=True))
        self.head = nn.Linear(spec.width, spec.classes) if spec.classes else None
        self.parameter_rules = (
            Rule(r".*norm\.weight", ones),
            Rule(r"head\.weight", zeros, group="head"),
            Rule(r"head\.bias", zeros, group="head"),
            Rule(r".*bias", zeros),
            Rule(r".*", normal(lambda shape: (2 / fan_in(shape)) ** 0.5)),
        )

    def units(self) -> Iterable[nn.Module]:
        return self.stages

    def layer(self, name: str) -> int:
        part, _, rest = name.partition(".")
        return int(rest.partition(".")[0]) if part == "stages" else len(self.stages)

    def pyramid(self, image: Tensor, slots: SlotContext | None = None) -> list[Tensor]:
        maps = [image]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]

    def features(self, image: Tensor, slots: SlotContext | None = None) -> Tensor:
        return self.pyramid(image, slots)[-1].mean((2, 3))

    def forward(self, image: Tensor, slots: SlotContext | None = None) -> Tensor:
        x = self.features(image, slots)
        return x if self.head is None else self.head(x)


def published() -> dict[str, PlainConvConfig]:
    return {"plain_conv": PlainConvConfig(classes=1000)}


def plain_conv() -> Run:
    """The smoke size of a ResNet's recipe, with this network in its place."""
    run = recipes.find("resnet50_imagenet", smoke=True)
    return replace(
        run, objective=SupervisedConfig(net=PlainConvConfig(classes=12), pixels="imagenet")
    )
