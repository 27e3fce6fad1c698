"""What a network in training is told of the rows that it is given:
which of them count, and what their randomness hangs on.
"""

from dataclasses import dataclass, replace
from typing import Protocol, cast

from torch import Tensor, nn

from vtx_scale.blocks import random
from vtx_scale.distributed.ranks import Ranks

WHOLE = Ranks()
VIEWS = 1 << 16  # a row's number is slot * VIEWS + view


@dataclass(frozen=True)
class SlotContext:
    """B rows.

    A network called as `net(x)` evaluates; as `net(x, slots)` it trains: drops, and
    takes batch statistics.

    valid (B,) bool; number (B,) int64: slot and view, the same on whatever rank the row lies; key
    () int64 of seed and step. call: names the pass where a network runs more than once in a step,
    as on global and on local crops.
    """

    valid: Tensor
    number: Tensor
    key: Tensor
    ranks: Ranks
    call: str = ""

    def part(self, a: int, b: int) -> "SlotContext":
        """Rows a .. b-1 of these."""
        return replace(self, valid=self.valid[a:b], number=self.number[a:b])

    def uniform(self, purpose: str, *shape: int) -> Tensor:
        """(B, *shape) in [0, 1)."""
        return random.uniform(self.key, f"{self.call}/{purpose}", self.number, *shape)

    def normal(self, purpose: str, *shape: int) -> Tensor:
        """(B, *shape), standard normal."""
        return random.normal(self.key, f"{self.call}/{purpose}", self.number, *shape)


def dropout(
    x: Tensor,
    rate: float,
    slots: SlotContext | None,
    *purpose: str,
    axis: Ranks = WHOLE,
    dim: int = -1,
) -> Tensor:
    """Each number of x (B, ...) becomes 0 with probability `rate`,
    the others grow by 1 / (1 - rate).

    axis: the ranks that share the dimension `dim`, counted from the end, in equal parts: what is
    drawn is drawn of the whole.
    """
    if slots is None or not rate:
        return x
    shape, here = list(x.shape[1:]), x.shape[dim]
    shape[dim] *= axis.world
    drawn = slots.uniform(".".join(purpose), *shape)
    keep = drawn.narrow(dim, axis.rank * here, here) >= rate
    return x * keep.to(x.dtype) / (1 - rate)


def drop_path(x: Tensor, rate: float, slots: SlotContext | None, *purpose: str) -> Tensor:
    """Stochastic depth (Huang et al. 2016): a row's branch x (B,
    ...) is left out with probability `rate`.
    """
    if slots is None or not rate:
        return x
    keep = slots.uniform(".".join(purpose)) >= rate
    return x * (keep.to(x.dtype) / (1 - rate)).view(-1, *[1] * (x.ndim - 1))


class Running(Protocol):
    """A module that keeps running statistics."""

    def discard_statistics(self) -> None:
        """Before a step: what one that did not count has left behind goes."""

    def update_statistics(self) -> None:
        """After a step that counted: they take in what it saw."""


def with_running_statistics(module: nn.Module) -> list[Running]:
    """The modules that keep running statistics."""
    return [cast(Running, m) for m in module.modules() if hasattr(m, "update_statistics")]
