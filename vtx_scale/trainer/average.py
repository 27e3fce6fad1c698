"""A moving average of all that is trained (Polyak & Juditsky 1992), for every objective:
`optim.average=0.9999`.

It is state of the optimizer as its moments are: a tensor a leaf, cut as the leaf is, "average/NAME"
in a checkpoint, which any world and strategy reads. It follows and never leads: no step of the
training depends on it. Evaluators, `open_run` and exports take it in the place of the weights.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vtx_scale.strategies.base import Base
from vtx_scale.trainer.leave import Leave
from vtx_scale.trainer.optim import parameters


@dataclass(frozen=True)
class Average:
    """keep: the share of its own value that the average keeps at a step. pairs: (a leaf's tensor,
    its average) each; none where nothing is averaged.
    """

    keep: float = 0.0
    pairs: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @torch.no_grad()
    def begin(self) -> None:
        """It starts from the weights as they are."""
        for tensor, average in self.pairs:
            average.copy_(tensor)

    @torch.no_grad()
    def move(self) -> None:
        """After a step that counted: average += (1 - keep) (weights - average)."""
        if self.pairs:
            tensors, averages = (list(part) for part in zip(*self.pairs, strict=True))
            torch._foreach_lerp_(averages, tensors, 1 - self.keep)

    @contextlib.contextmanager
    def shown(self, strategy: Base) -> Iterator[None]:
        """Inside, the forward pass reads the average; behind it the weights, bit for bit.

        What ends one rank alone ends the run, so that only what all ranks raise is heeded: the
        others would wait in vain.
        """
        if self.pairs:
            self._swap(strategy)
        try:
            yield
        except Leave:
            if self.pairs:
                self._swap(strategy)
            raise
        if self.pairs:
            self._swap(strategy)

    @torch.no_grad()
    def _swap(self, strategy: Base) -> None:
        for tensor, average in self.pairs:
            held = tensor.clone()
            tensor.copy_(average)
            average.copy_(held)
        strategy.reshard()  # what was gathered is of the others
        strategy.settled()


def average_of(optimizer: torch.optim.Optimizer, keep: float) -> Average:
    """The average in an optimizer's state (`optim.optimizer_of`); of nothing where `keep` is 0."""
    moved = parameters(optimizer) if keep else []
    return Average(keep, [(p, optimizer.state[p]["average"]) for p in moved])
