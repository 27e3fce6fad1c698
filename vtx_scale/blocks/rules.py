"""Parameter rules: a table beside the paper that says of every parameter where it starts,
and how it is trained.

    parameter_rules = (
        Rule(r"positions", normal(0.02), decay=False),
        Rule(r".*norm\\d\\.weight", ones),
        Rule(r".*\\.bias", zeros),
        Rule(r"head\\.weight", zeros, group="head"),
        Rule(r".*", xavier),
    )

A pattern must match the whole name, and the first line that does counts. Buffers are met by the
same table for where they start. A module's table speaks of its own names; `under` puts a part's
table into that of the whole.
"""

import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from torch import Tensor, nn

Shape = tuple[int, ...]
# kind and its number: ("normal", std), ("uniform", bound), ("truncated", std), ("constant", value)
Values = tuple[str, float]
Initial = Callable[[Shape], Values]  # of a parameter's whole shape
Number = float | Callable[[Shape], float]


def zeros(shape: Shape) -> Values:
    return "zeros", 0.0


def ones(shape: Shape) -> Values:
    return "ones", 0.0


def constant(value: float) -> Initial:
    return lambda shape: ("constant", value)


def normal(std: Number) -> Initial:
    """N(0, std^2); std may be a function of the shape, as `fan_in(1.0)` is."""
    return lambda shape: ("normal", number(std, shape))


def uniform(bound: Number) -> Initial:
    """Between -bound and bound."""
    return lambda shape: ("uniform", number(bound, shape))


def truncated(std: Number) -> Initial:
    """N(0, std^2) within two standard deviations."""
    return lambda shape: ("truncated", number(std, shape))


def number(value: Number, shape: Shape) -> float:
    return value(shape) if callable(value) else value


def fan_in(shape: Shape) -> int:
    """Numbers that come into one output of a matrix (out, in) or a convolution (out, in, h, w)."""
    return math.prod(shape[1:])


@dataclass(frozen=True)
class Rule:
    """One line: the parameters whose names match `pattern` as a whole.

    initial: where they start. decay: whether weight decay shrinks them; None: matrices and kernels,
    not vectors. lr_scale: of their learning rate. frozen_until: the step before which they rest;
    one such step a table. keep_float32: no mixed precision, for all parameters of a module or for
    none. group: "head" starts anew under `init.head=new` and has `optim.head_decay`, "trunk" has
    `optim.trunk_lr`. limits: where a value is clamped to after each step. hidden: whether it is a
    hidden layer's matrix, which Muon orthogonalises; None: two dimensions, named `*.weight`, and
    not of a head.
    """

    pattern: str
    initial: Initial
    decay: bool | None = None
    lr_scale: float = 1.0
    frozen_until: int = 0
    keep_float32: bool = False
    group: Literal["", "head", "trunk"] = ""
    limits: tuple[float, float] | None = None
    hidden: bool | None = None

    def orthogonal(self, name: str, ndim: int) -> bool:
        """Whether a parameter of this line is a hidden layer's matrix."""
        if self.hidden is None:
            return ndim == 2 and name.endswith(".weight") and self.group != "head"
        return self.hidden

    def decays(self, ndim: int) -> bool:
        """Whether a parameter of so many dimensions is decayed."""
        return ndim >= 2 if self.decay is None else self.decay


Rules = tuple[Rule, ...]


class Ruled(Protocol):
    """A module that says by a table where its parameters start, and how they are trained."""

    parameter_rules: Rules

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """As torch has it."""

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """As torch has it."""


def under(prefix: str, rules: Iterable[Rule], **changes: Any) -> Rules:
    """A part's table for names with `prefix` before them; changes:
    fields that all its lines get.
    """
    return tuple(
        replace(rule, pattern=f"{re.escape(prefix)}(?:{rule.pattern})", **changes) for rule in rules
    )


@functools.lru_cache(4096)
def compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def rule_of(rules: Rules, name: str) -> Rule:
    """The first line that matches. Raises LookupError where none does."""
    for rule in rules:
        if compiled(rule.pattern).fullmatch(name):
            return rule
    raise LookupError(f"no parameter rule says where {name} starts: add a line to parameter_rules")


def table_of(module: Ruled) -> dict[str, Rule]:
    """Name -> its line, of every trained, frozen or following parameter and every buffer.

    Raises LookupError, ValueError.
    """
    names = [name for name, _ in (*module.named_parameters(), *module.named_buffers())]
    table = {name: rule_of(module.parameter_rules, name) for name in names}
    if len({rule.frozen_until for rule in table.values()} - {0}) > 1:
        raise ValueError("parameter_rules: all lines with frozen_until must name one step")
    return table


def initial_values(module: Ruled) -> Callable[[str, Shape], Values]:
    """(name, shape) -> where a parameter or buffer of `module` starts."""
    rules = module.parameter_rules
    return lambda name, shape: rule_of(rules, name).initial(tuple(shape))


def float32_units(module: nn.Module, table: dict[str, Rule]) -> list[nn.Module]:
    """The modules whose own parameters keep float32, inner ones first.

    Raises ValueError for one that does not keep all, its parts' too, which are sharded with it.
    """
    keeps = {id(p): table[name].keep_float32 for name, p in module.named_parameters()}
    units = []
    for prefix, part in module.named_modules():
        if any(keeps[id(p)] for p in part.parameters(recurse=False)):
            if not all(keeps[id(p)] for p in part.parameters()):
                raise ValueError(
                    "parameter_rules: keep_float32 must hold for all parameters of "
                    f"{prefix or 'the objective'} or for none"
                )
            units.append(part)
    return units[::-1]
