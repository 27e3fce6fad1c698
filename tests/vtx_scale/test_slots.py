"""Randomness that belongs to slots: what is dropped does not hang on the rank,
the micro-batch or the neighbours.
"""

import torch
import torch.nn.functional as F

from vtx_scale.blocks import random
from vtx_scale.blocks.position import cubic, resampled, sincos2d
from vtx_scale.blocks.slots import VIEWS, SlotContext, drop_path, dropout
from vtx_scale.distributed.ranks import Ranks

GOLDEN = [[0.8778162002563477, 0.4464036822319031], [0.8093263506889343, 0.8501076698303223]]


def slots(numbers, step=0, call=""):
    at = torch.as_tensor(numbers)
    return SlotContext(
        torch.ones(len(at), dtype=torch.bool), at, random.step_key(7, step), Ranks(), call
    )


def test_a_row_has_its_numbers_wherever_it_lies():
    whole = slots(torch.arange(40) * VIEWS)
    some = slots(torch.tensor([31, 3]) * VIEWS)
    assert torch.equal(whole.uniform("a", 5, 2)[[31, 3]], some.uniform("a", 5, 2))
    assert torch.equal(whole.normal("a", 9)[[31, 3]], some.normal("a", 9))
    x = torch.randn(40, 6, 4)
    for drop in (dropout, drop_path):
        assert torch.equal(drop(x, 0.4, whole, "p")[[31, 3]], drop(x[[31, 3]], 0.4, some, "p"))


def test_purpose_step_seed_slot_view_and_pass_change_the_numbers():
    base = slots(torch.arange(64) * VIEWS).uniform("a", 8)
    others = [
        slots(torch.arange(64) * VIEWS).uniform("b", 8),
        slots(torch.arange(64) * VIEWS, step=1).uniform("a", 8),
        slots(torch.arange(64) * VIEWS + 1).uniform("a", 8),
        slots(torch.arange(64) * VIEWS, call="x").uniform("a", 8),
        random.uniform(random.step_key(8, 0), "/a", torch.arange(64) * VIEWS, 8),
    ]
    for other in others:
        assert (base == other).float().mean() < 0.01
        # 512 pairs: 3 deviations
        assert abs(torch.corrcoef(torch.stack([base.flatten(), other.flatten()]))[0, 1]) < 0.15


def test_the_numbers_are_uniform_and_normal():
    u = slots(torch.arange(500) * VIEWS).uniform("u", 400).double()
    z = slots(torch.arange(500) * VIEWS).normal("z", 400).double()
    counts = torch.histc(u, 64, 0, 1)
    expected = u.numel() / 64
    # chi-squared, 63 degrees
    assert ((counts - expected) ** 2 / expected).sum() < 63 + 4 * (2 * 63) ** 0.5
    assert u.min() >= 0 and u.max() < 1
    assert abs(z.mean()) < 0.01 and abs(z.std() - 1) < 0.01 and abs(z.pow(4).mean() - 3) < 0.1
    for lag in (1, 7):  # neither along a row nor across rows
        for a, b in ((u[:, lag:], u[:, :-lag]), (u[lag:], u[:-lag])):
            assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) < 0.01


def test_golden_numbers():
    """The numbers are part of what a seed means: they stay from release to release."""
    u = random.uniform(
        random.step_key(3, 41), "blocks.0.path1", torch.tensor([0, 5 * VIEWS + 2]), 2
    )
    assert torch.equal(u, torch.tensor(GOLDEN))


def test_dropping_keeps_the_mean():
    x, many = torch.ones(2_000, 50), slots(torch.arange(2_000) * VIEWS)
    assert abs(dropout(x, 0.3, many, "d").mean() - 1) < 0.01
    paths = drop_path(x, 0.3, many, "d")
    assert abs(paths.mean() - 1) < 0.05 and set((paths[:, 0] * 0.7).round().tolist()) == {0.0, 1.0}
    assert torch.equal(dropout(x, 0.3, None, "d"), x), "an evaluation drops nothing"


def test_positions_at_another_resolution():
    """The published code's bicubic interpolation, with its scale of (new + 0.1) / old;
    as a product with a matrix.
    """
    for old, new in ((14, 6), (4, 2), (7, 16)):
        positions = torch.randn(1, old * old, 12, dtype=torch.float64)
        grid = positions.view(1, old, old, 12).permute(0, 3, 1, 2)
        scale = (new + 0.1) / old
        plain = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
        assert plain.shape[2] == new
        assert torch.allclose(
            resampled(positions, old, new), plain.permute(0, 2, 3, 1).flatten(1, 2), atol=1e-9
        )
        assert torch.allclose(
            cubic(old, new, scale, "cpu").sum(1), torch.ones(new, dtype=torch.float64)
        )


def test_fixed_positions():
    x = sincos2d(3, 8)
    assert x.shape == (9, 8)
    # of the sixth patch, times both frequencies
    column, row = torch.tensor([2.0, 2e-4]), torch.tensor([1.0, 1e-4])
    assert torch.allclose(x[5], torch.cat([column.sin(), column.cos(), row.sin(), row.cos()]))
