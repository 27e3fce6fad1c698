"""Names of one library to another's and back, from a table of lines.

In both names `{n}` stands for the number of a block and `{p}` for weight or bias. In theirs `{x}`
stands for q, k and v, and `{w}` for query, key and value: three tensors there, one here, whose rows
are q, k, v in this order.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from vtx_scale.data_pipeline.errors import UserError

SPLIT = {"x": ("q", "k", "v"), "w": ("query", "key", "value")}
HOLES = {
    "n": r"\d+",
    "p": "weight|bias",
    **{hole: "|".join(words) for hole, words in SPLIT.items()},
}

# how values change: outward, inward
WAYS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "same": (lambda t: t, lambda t: t),
    "transposed": (lambda t: t.T.contiguous(), lambda t: t.T.contiguous()),
    "table": (lambda t: t[0], lambda t: t[None]),  # (1, N, C) here, (N, C) there
    "vector": (lambda t: t[0, 0], lambda t: t[None, None]),  # (1, 1, C) here, (C,) there
    "scalar": (lambda t: t.reshape(()), lambda t: t.reshape(1)),
}


@dataclass(frozen=True)
class Line:
    """One tensor, or one of each block."""

    ours: str
    theirs: str
    way: str = "same"


def under(ours: str, theirs: str, lines: Iterable[Line]) -> list[Line]:
    """Lines with a prefix before both names."""
    return [Line(ours + line.ours, theirs + line.theirs, line.way) for line in lines]


@lru_cache(1024)
def pattern(name: str) -> re.Pattern[str]:
    expression = re.escape(name)
    for hole, regex in HOLES.items():
        expression = expression.replace(rf"\{{{hole}\}}", f"(?P<{hole}>{regex})")
    return re.compile(expression)


def parts_of(name: str, holes: dict[str, str]) -> list[str]:
    """The names that `name` stands for: three where it has a hole for q, k and v."""
    for hole, words in SPLIT.items():
        if f"{{{hole}}}" in name:
            return [name.format(**{**holes, hole: word}) for word in words]
    return [name.format(**holes)]


def find(table: Iterable[Line], name: str, side: str) -> tuple[Line, dict[str, str]] | None:
    """The line whose `side` ("ours", "theirs") is `name`, and what its holes stand for."""
    for line in table:
        if m := pattern(getattr(line, side)).fullmatch(name):
            return line, m.groupdict()
    return None


def to_foreign(table: list[Line], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under their names.

    Raises UserError for one that their layout has no place for.
    """
    foreign: dict[str, Tensor] = {}
    for name, tensor in state.items():
        found = find(table, name, "ours")
        if found is None:
            raise UserError(
                f"{name} has no place in the other library's layout: export to safetensors instead."
            )
        line, holes = found
        names = parts_of(line.theirs, holes)
        for part, values in zip(names, tensor.chunk(len(names)), strict=True):
            foreign[part] = WAYS[line.way][0](values)
    return foreign


def from_foreign(table: list[Line], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors under our names.

    Raises UserError for one that is unknown or lacks its siblings.
    """
    state_dict: dict[str, Tensor] = {}
    for name in state:
        found = find(table, name, "theirs")
        if found is None:
            raise UserError(
                f"{name} has no place in the recipe's model: give weights of the same architecture."
            )
        line, holes = found
        ours = line.ours.format(**holes)
        if ours in state_dict:
            continue
        parts = parts_of(line.theirs, holes)
        lacking = [part for part in parts if part not in state]
        if lacking:
            raise UserError(f"The weights have {name} but no {lacking[0]}: give the whole file.")
        whole = torch.cat([state[part] for part in parts]) if len(parts) > 1 else state[name]
        state_dict[ours] = WAYS[line.way][1](whole)
    return state_dict
