"""Batch normalisation over ranks, against torch's on the valid rows of the whole
batch, in float64.
"""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.ranks import gathered, on_ranks
from vtx_scale.blocks.norm import BatchNorm
from vtx_scale.blocks.random import step_key
from vtx_scale.blocks.slots import SlotContext
from vtx_scale.distributed.ranks import Ranks

ROWS, CHANNELS = 11, 5
PATTERNS = {
    "all valid": [1] * 11,
    "some masked": [1, 1, 0, 1, 1, 1, 0, 1, 1, 0, 1],
    "a rank masked": [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1],
    "one valid": [0] * 7 + [1] + [0] * 3,
}
SHAPES = {"maps": (3, 4), "vectors": ()}


def slots_of(valid, ranks=None, call=""):
    return SlotContext(valid, torch.arange(len(valid)), step_key(0, 0), ranks or Ranks(), call)


def numbers(shape):
    """x, and what y is weighed with in the loss; far from 0, so that squares would cancel."""
    g = torch.Generator().manual_seed(3)
    x = torch.randn(ROWS, CHANNELS, *shape, generator=g, dtype=torch.float64) * 2 + 1000
    return x, torch.randn(x.shape, generator=g, dtype=torch.float64)


def layer(kind, **more):
    norm = kind(CHANNELS, **more).double()
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, CHANNELS))
        norm.bias.copy_(torch.linspace(-1, 1, CHANNELS))
        norm.running_mean.copy_(torch.linspace(0, 1, CHANNELS))
        norm.running_var.copy_(torch.linspace(1, 3, CHANNELS))
    return norm


def expected(pattern, shape):
    """Two steps of torch's BatchNorm on the valid rows:
    y, gradient of x, of weight and bias, running statistics.
    """
    x, weigh = numbers(shape)
    valid = torch.tensor(PATTERNS[pattern], dtype=torch.bool)
    theirs = layer(nn.BatchNorm2d if shape else nn.BatchNorm1d)
    theirs(x[valid] + 1)
    mine = x[valid].clone().requires_grad_()
    y = theirs(mine)
    (y.sin() * weigh[valid]).sum().backward()
    theirs.eval()
    later = theirs(x)
    return [
        t.detach()
        for t in (
            y,
            mine.grad,
            theirs.weight.grad,
            theirs.bias.grad,
            theirs.running_mean,
            theirs.running_var,
            later,
        )
    ]


def cell(recompute):
    """On a rank: the same of ours for every pattern and shape;
    y and the gradient of x are this rank's rows.
    """
    from vtx_scale.distributed.ranks import GroupRanks

    dist = gathered()
    rank, world = dist.get_rank(), dist.get_world_size()
    cap = -(-ROWS // world)
    at = torch.arange(rank * cap, (rank + 1) * cap)
    inside = at < ROWS
    at = at.clamp(max=ROWS - 1)
    out = {}
    for pattern in PATTERNS:
        for shape in SHAPES.values():
            if not possible(pattern, shape):
                continue
            x, weigh = (t[at] for t in numbers(shape))
            valid = torch.tensor(PATTERNS[pattern], dtype=torch.bool)[at] & inside
            x[~valid] = float("nan")  # what a masked row holds must not show
            norm = layer(BatchNorm)
            slots = slots_of(valid, GroupRanks())
            norm(x + 1, slots)
            norm.update_statistics()
            norm(x * 3, slots)
            norm.discard_statistics()
            x.requires_grad_()
            y = checkpoint(norm, x, slots, use_reentrant=False) if recompute else norm(x, slots)
            loss = torch.where(
                valid.view(-1, *[1] * (y.ndim - 1)), y.sin() * weigh, torch.zeros_like(y)
            ).sum()
            loss.backward()
            assert not x.grad[~valid].any()
            norm.update_statistics()
            assert not norm.pending
            sums = [GroupRanks().sum(p.grad) for p in (norm.weight, norm.bias)]
            later = norm(numbers(shape)[0])
            out[pattern, shape] = [
                t.detach().tolist()
                for t in (
                    y[valid],
                    x.grad[valid],
                    *sums,
                    norm.running_mean,
                    norm.running_var,
                    later,
                )
            ]
    return out


def possible(pattern, shape):
    """Whether torch knows a variance: it refuses one number a channel."""
    return pattern != "one valid" or bool(shape)


@pytest.mark.parametrize(
    ("world", "recompute"), [(1, False), (2, False), (2, True), (3, False), (4, False)]
)
def test_equals_torch_on_the_valid_rows(world, recompute):
    ranks = on_ranks(world, cell, recompute)
    count = 0
    for pattern in PATTERNS:
        for shape in SHAPES.values():
            if not possible(pattern, shape):
                continue
            wanted = expected(pattern, shape)
            found = [
                [
                    torch.tensor(v, dtype=torch.float64).reshape(-1, *wanted[k].shape[1:])
                    if k in (0, 1)
                    else torch.tensor(v, dtype=torch.float64)
                    for k, v in enumerate(r[pattern, shape])
                ]
                for r in ranks
            ]
            for k, want in enumerate(wanted):
                for got in [torch.cat([f[k] for f in found])] if k < 2 else [f[k] for f in found]:
                    assert got.shape == want.shape
                    assert (got - want).abs().max() < 1e-9 * max(1, want.abs().max()), (
                        pattern,
                        shape,
                        k,
                    )
                    count += 1
    assert count == 7 * (2 + 5 * world)


def test_the_second_time_overwrites_and_calls_follow_one_another():
    x, _ = numbers((3, 4))
    valid = torch.ones(ROWS, dtype=torch.bool)
    ours, theirs = layer(BatchNorm), layer(nn.BatchNorm2d)
    for call in ("global", "local", "global"):  # the last as a recomputation does
        ours(x * (2 if call == "local" else 1), slots_of(valid, call=call))
    before = ours.running_mean.clone()
    assert torch.equal(before, layer(BatchNorm).running_mean)  # forward moves nothing
    ours.update_statistics()
    theirs(x)
    theirs(x * 2)
    assert (ours.running_mean - theirs.running_mean).abs().max() < 1e-9
    assert (ours.running_var - theirs.running_var).abs().max() < 1e-9
    after = ours.running_mean.clone()
    ours.update_statistics()
    assert torch.equal(ours.running_mean, after)
    assert set(ours.state_dict()) == {"weight", "bias", "running_mean", "running_var"}


def test_nobody_is_valid():
    x = torch.randn(4, CHANNELS, 2, 2, requires_grad=True)
    norm = layer(BatchNorm).float()
    y = norm(x, slots_of(torch.zeros(4, dtype=torch.bool)))
    (y * 0).sum().backward()
    norm.update_statistics()
    assert y.isfinite().all() and x.grad.isfinite().all()
    assert torch.equal(norm.running_var, layer(BatchNorm).float().running_var)
    assert torch.equal(norm.running_mean, layer(BatchNorm).float().running_mean)


def test_half_precision_counts_in_float32():
    """256 is where bfloat16 ends to count by one; the mean and variance are those of float32."""
    x = (torch.randn(64, CHANNELS, 8, 8, generator=torch.Generator().manual_seed(0)) + 3).bfloat16()
    valid = torch.ones(64, dtype=torch.bool)
    norm = BatchNorm(CHANNELS)
    y = norm(x, slots_of(valid))
    norm.update_statistics()
    assert y.dtype == torch.bfloat16 and norm(x).dtype == torch.bfloat16
    theirs = nn.BatchNorm2d(CHANNELS)
    theirs(x.float())
    assert (norm.running_mean - theirs.running_mean).abs().max() < 1e-6
    assert (norm.running_var - theirs.running_var).abs().max() < 1e-6
