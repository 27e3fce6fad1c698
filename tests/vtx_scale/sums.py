"""An objective whose gradients are known without arithmetic, and what a strategy makes of it on a
rank.
"""

from typing import Any

import torch
from torch import nn

from tests.ranks import gathered
from vtx_scale.blocks.rules import Rule, zeros
from vtx_scale.objectives.base import Context, Objective
from vtx_scale.specs.objective import ObjectiveSpec
from vtx_scale.specs.run import System
from vtx_scale.strategies.apply import strategy_of

SHAPES = {"a": (7,), "b": (5, 3), "c": (1,), "d": (4,)}  # d is frozen
FACTORS = {"a": 1.0, "b": 2.0, "c": 3.0}  # of each, a gradient everywhere


class Sums(Objective):
    """loss = sum(a) + 2 sum(b) + 3 sum(c) + sum(d)."""

    parameter_rules = (Rule(r".*", zeros),)

    def __init__(self, shapes: dict[str, tuple[int, ...]] = SHAPES) -> None:
        super().__init__(ObjectiveSpec(), Context())
        for name, shape in shapes.items():
            part = nn.Parameter(torch.empty(shape, device="meta"), requires_grad=name in FACTORS)
            self.register_parameter(name, part)

    def units(self) -> list[nn.Module]:
        return []

    def forward(self, batch: Any, step: int = 0) -> tuple[torch.Tensor, dict]:
        a, b, c, d = self.a, self.b, self.c, self.d
        return a.sum() + 2 * b.sum() + 3 * c.sum() + d.sum(), {}

    def everything(self) -> torch.Tensor:
        """() all values, one after another."""
        return torch.cat([self.a, self.b.flatten(), self.c, self.d])


def after_a_step(name: str, offload: str = "none") -> tuple[Any, dict[str, Any]]:
    """On a rank: its strategy after two micro-batches of which nothing was cleared, and what came:
    "leaves", name -> boxes, the value that was written there, the values of the gradient, whether
    others hold copies; "seen", what the forward pass read of all parameters.
    """
    world, rank = gathered().get_world_size(), gathered().get_rank()
    system = System(strategy=name, offload=offload)
    strategy: Any = strategy_of(system, world, torch.device("cpu"), None)
    objective = Sums()
    strategy.prepare(objective)
    for leaf in strategy.leaves():
        leaf.tensor.detach().fill_(9 if leaf.copies == world else rank + 1)
    strategy.settled()
    seen = strategy.run_probe(objective.everything).tolist()
    for last in (False, True):
        with strategy.micro(last):
            strategy.backward(strategy.forward(None, 0)[0])
    leaves = {}
    for leaf in strategy.leaves():
        copied = leaf.copies == world
        grads = [] if leaf.grad is None else sorted(set(leaf.grad.flatten().tolist()))
        leaves[leaf.name] = (leaf.boxes, 9 if copied else rank + 1, grads, copied)
    return strategy, {"leaves": leaves, "seen": seen}


def assert_covers(found: list[dict[str, Any]]) -> None:
    """Each trained value lies on one rank, with a gradient that is the sum of two micro-batches on
    all ranks; what a rank wrote there is what the forward pass of every rank reads.
    """
    written = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    for one in found:
        for name, (boxes, value, grads, copied) in one["leaves"].items():
            for box in boxes:
                part = written[name][tuple(slice(a, b) for a, b in box)]
                assert copied or not part.any(), f"a value of {name} lies on two ranks"
                part.fill_(value)
            if name in FACTORS and boxes:
                assert grads == [2 * len(found) * FACTORS[name]]
    flat = torch.cat([t.flatten() for t in written.values()]).tolist()
    assert all(flat) and all(one["seen"] == flat for one in found)
