"""A global batch of eleven slots, its masks, its shares on ranks,
and an objective built on a rank as a run builds it.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.ranks import gathered
from vtx_scale.blocks.rules import initial_values
from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.launch.build import build_objective
from vtx_scale.specs.run import Run

SLOTS = 11
CELLS = [
    ("single", 1),
    ("ddp", 2),
    ("ddp", 3),
    ("ddp", 4),
    ("fsdp", 1),
    ("fsdp", 2),
    ("fsdp", 3),
    ("fsdp", 4),
]
PATTERNS = {
    "some masked": [1, 1, 0, 1, 1, 1, 0, 1, 1, 0, 1],
    "a rank masked": [0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1],
    "all valid": [1] * 11,
}


def whole(data: dict[str, torch.Tensor], pattern: str) -> Batch:
    """All slots of a global batch; a masked slot holds numbers that must not show."""
    valid = torch.tensor(PATTERNS[pattern], dtype=torch.bool)
    return Batch(
        data, valid, torch.arange(SLOTS), torch.zeros(SLOTS, dtype=torch.int64), torch.arange(SLOTS)
    )


def share(batch: Batch, rank: int, world: int) -> Batch:
    """This rank's slots, padded with masked ones."""
    cap = -(-SLOTS // world)
    at = torch.arange(rank * cap, (rank + 1) * cap)
    inside = at < SLOTS
    rows = at.clamp(max=SLOTS - 1)
    data = {k: v[rows] for k, v in batch.data.items()}
    return Batch(
        data,
        batch.valid[rows] & inside,
        torch.where(inside, batch.ids[rows], -1),
        batch.epoch[rows],
        at,
    )


def alone(run: Run, values: Any = lambda initial: initial) -> Any:
    """The objective in float64 on one process. values: changes the initial values."""
    from vtx_scale.strategies.single import Single
    from vtx_scale.trainer.init import initialise

    objective = build_objective(run, torch.float64)
    Single(torch.device("cpu")).prepare(objective)
    initialise(objective, values(initial_values(objective)), run.seed)
    return objective


def on_this_rank(run: Run, values: Any = lambda initial: initial) -> tuple[Any, Any, int, int]:
    """Strategy, objective in float64, rank and world, on a rank of `tests.ranks.on_ranks`."""
    from vtx_scale.strategies.apply import apply, strategy_of
    from vtx_scale.trainer.init import initialise_slices

    dist = gathered()
    rank, world = dist.get_rank(), dist.get_world_size()
    strategy = strategy_of(run.system, world, torch.device("cpu"), None)
    objective: Any = build_objective(run, torch.float64, strategy.data)
    initial = values(initial_values(objective))
    apply(objective, strategy, run.system)
    initialise_slices(strategy, initial, run.seed)
    return strategy, objective, rank, world


def whole_grads(objective: Any) -> dict[str, np.ndarray]:
    """The gradient of every trained parameter, assembled and copied:
    as arrays, which are cheap to send to another process.
    """
    grads = {k: p.grad for k, p in objective.named_parameters() if p.requires_grad}
    return {
        k: (g.full_tensor() if hasattr(g, "full_tensor") else g).detach().numpy().copy()
        for k, g in grads.items()
    }


def by_pattern(
    run: Run, samples: Callable[[str], Batch], values: Any, step: int, cut: int | None = None
) -> dict[str, Any]:
    """On a rank, for every mask pattern: the loss of the whole batch, and whole gradients.

    cut: slots of a micro-batch.
    """
    strategy, objective, rank, world = on_this_rank(run, values)
    out = {}
    for pattern in PATTERNS:
        batch = objective.prepare(share(samples(pattern), rank, world), step)
        total, value = (
            strategy.data.sum(objective.count(batch).double()),
            torch.zeros((), dtype=torch.float64),
        )
        parts = batch.split(cut)
        for k, part in enumerate(parts):
            with strategy.micro(last=k == len(parts) - 1):
                loss, _ = objective(part, step)
                strategy.backward(loss / total)
            value += (loss / total).detach()
        out[pattern] = (strategy.data.sum(value).item(), whole_grads(objective))
        objective.zero_grad()
    return out


def assert_equal(found: dict[str, Any], expected: dict[str, Any], *where: object) -> None:
    """Within 1e-9. expected: pattern -> (loss, gradients by name, None for zero)."""
    assert found.keys() == expected.keys() == PATTERNS.keys()
    for pattern, (value, grads) in found.items():
        wanted, wanted_grads = expected[pattern]
        assert value == pytest.approx(wanted, rel=1e-9), (*where, pattern)
        assert grads.keys() == wanted_grads.keys()
        for name, grad in grads.items():
            known = 0 if wanted_grads[name] is None else wanted_grads[name]
            error = (torch.tensor(grad, dtype=torch.float64) - known).abs().max().item()
            assert error < 1e-9, (*where, pattern, name, error)
