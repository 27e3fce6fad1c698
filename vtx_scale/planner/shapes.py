"""How many numbers of a model a rank holds under each strategy: closed forms over its shapes.

`parameters_of` reads an objective on the meta device; `held` counts. What a cut is:
  rows     FSDP: rank r of S takes rows r ceil(n/S) .. of dimension 0, the last ranks what is left,
           so that at many ranks rank 0 has most and some have nothing
  flat     ZeRO-1 and -2: all tensors end to end, padded to a multiple of 2 S, S equal parts
  each     ZeRO-3: every tensor end to end and padded by itself
  tensors  fairscale: each tensor whole on one rank, the one that has least until then
Tensor parallelism cuts before, by the backbones' `cuts()`.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from vtx_scale.blocks.cuts import cut_layers
from vtx_scale.blocks.rules import float32_units, table_of
from vtx_scale.objectives.base import Objective
from vtx_scale.planner.layout import Cut

ROOT = -1  # the unit of what lies outside of all units
ALIGN = 2  # DeepSpeed pads its flat groups to so many times the ranks
Role = Literal["trained", "frozen", "follower"]


@dataclass(frozen=True)
class Parameter:
    """One parameter of an objective.

    unit: number of what is gathered as one with it, `ROOT` for what lies outside of all units.
    split: the dimension that tensor parallelism cuts, None for none. float32: mixed precision
    leaves it alone. matrix: Muon moves it, where that is the optimizer.
    """

    name: str
    shape: tuple[int, ...]
    role: Role = "trained"
    unit: int = ROOT
    float32: bool = False
    split: int | None = None
    matrix: bool = False

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def under_tp(self, ways: int) -> tuple[int, ...]:
        """The shape that each of so many ranks has of it."""
        if self.split is None or ways == 1:
            return self.shape
        return tuple(n // ways if d == self.split else n for d, n in enumerate(self.shape))


def parameters_of(objective: Objective) -> list[Parameter]:
    """All parameters in the objective's order, each in the innermost unit that holds it.

    Raises LookupError or ValueError where the objective's parameter rules do not say all.
    """
    rules = table_of(objective)
    parts = [*float32_units(objective, rules), *objective.units()]
    unit: dict[int, int] = {}
    for number, part in enumerate(parts):
        for p in part.parameters():
            unit.setdefault(id(p), number)
    followers = {id(p) for f in objective.followers() for p in f.teacher.parameters()}
    splits = splits_of(objective)
    return [
        Parameter(
            name,
            tuple(p.shape),
            "follower" if id(p) in followers else "trained" if p.requires_grad else "frozen",
            unit.get(id(p), ROOT),
            rules[name].keep_float32,
            splits.get(name),
            rules[name].orthogonal(name, p.ndim),
        )
        for name, p in objective.named_parameters()
    ]


def splits_of(objective: nn.Module) -> dict[str, int]:
    """Name of a parameter -> the dimension that is cut: outputs with their bias, or inputs."""
    found = {}
    for layer, cut in cut_layers(objective).items():
        found[f"{layer}.weight"] = cut.dim
        if cut.dim == 0:
            found[f"{layer}.bias"] = 0
    return found


def rows(count: int, ways: int, index: int) -> int:
    """Of so many rows those that part `index` of `ways` takes, as torch.chunk deals them."""
    each = -(-count // ways)
    return max(0, min(count, (index + 1) * each) - index * each)


def held(
    parameters: Iterable[Parameter], cut: Cut | None, ways: int, index: int = 0, tp: int = 1
) -> int:
    """Numbers of these parameters that part `index` of `ways` holds, padding of flat parts
    included; None: whole copies.
    """
    shapes = [p.under_tp(tp) for p in parameters]
    sizes = [math.prod(s) for s in shapes]
    if cut is None:
        return sum(sizes)
    if cut == "rows":
        return sum(rows(s[0], ways, index) * math.prod(s[1:]) for s in shapes)
    if cut == "flat":
        step = ALIGN * ways
        return -(-sum(sizes) // step) * step // ways
    if cut == "each":
        return sum(-(-n // ways) for n in sizes)
    return sum(n for n, owner in zip(sizes, owners(sizes, ways), strict=True) if owner == index)


def owners(sizes: Iterable[int], ways: int) -> list[int]:
    """Of each tensor the rank that it goes to: the one that has least, the first of these
    (fairscale's OSS).
    """
    loads, found = [0] * ways, []
    for n in sizes:
        found.append(loads.index(min(loads)))
        loads[found[-1]] += n
    return found
