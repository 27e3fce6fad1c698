"""Adafactor against its definition written out in float64, whole and cut over ranks."""

import pytest
import torch
from torch import nn

from tests.ranks import gathered, on_ranks
from vtx_scale.blocks.rules import Rule, zeros
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.distributed.sharding import Leaf, boxes_of_flat
from vtx_scale.specs.run import Optimizer
from vtx_scale.trainer.adafactor import Adafactor, factored
from vtx_scale.trainer.optim import optimizer_of

SHAPES = {
    "matrix": (48, 40),
    "positions": (1, 50, 33),
    "kernel": (64, 3, 16, 16),
    "vector": (70,),
    "deep": (5, 32, 40),
}
STEPS, LR, DECAY = 4, 0.1, 0.2


def numbers(name, step):
    return torch.randn(
        SHAPES[name],
        generator=torch.Generator().manual_seed(len(name) + 100 * step),
        dtype=torch.float64,
    )


def plain(name):
    """The definition: averages over rows and columns, their product over its mean,
    an average of the update last.
    """
    p, first = numbers(name, 99), torch.zeros(SHAPES[name], dtype=torch.float64)
    dims = factored(SHAPES[name])
    second = [0.0, 0.0] if dims else 0.0
    for step in range(1, STEPS + 1):
        g, keep = numbers(name, step), min(0.999, 1 - step**-0.8)
        square = g * g + 1e-30
        if dims:
            second = [
                keep * s + (1 - keep) * square.mean(d, keepdim=True)
                for s, d in zip(second, dims, strict=True)
            ]
            estimate = second[0] * second[1] / second[0].mean(dims[1], keepdim=True)
        else:
            estimate = second = keep * second + (1 - keep) * square
        update = 0.9 * first + 0.1 * g / estimate.sqrt()
        p = p * (1 - LR * DECAY) - LR * update
        first = update.bfloat16().double()
    return p


def on_rank(cut):
    """Each tensor lies whole here where `cut` is None, else a block of that dimension."""
    dist = gathered()
    rank, world = dist.get_rank(), dist.get_world_size()

    def leaf(name):
        shape = SHAPES[name]
        box = [(0, n) for n in shape]
        dim = None if cut is None else min(cut, len(shape) - 1)
        if dim is not None:
            rows = -(-shape[dim] // world)
            box[dim] = (min(rank * rows, shape[dim]), min((rank + 1) * rows, shape[dim]))
        at = tuple(slice(a, b) for a, b in box)
        here = numbers(name, 99)[at].clone().requires_grad_()
        cuts = () if dim is None else ((dim, dist.group.WORLD),)
        copies = (world, rank) if dim is None else (1, 0)
        return Leaf(name, shape, Rule(".*", zeros), (tuple(box),), here, *copies, cuts), at

    leaves = [leaf(name) for name in SHAPES]
    group = {"params": [part.tensor for part, _ in leaves], "weight_decay": DECAY}
    optimizer = Adafactor([group], [part for part, _ in leaves], LR)
    for step in range(1, STEPS + 1):
        for part, at in leaves:
            part.tensor.grad = numbers(part.name, step)[at].clone()
        optimizer.step()
    for part, _ in leaves:
        for kind, state in optimizer.state[part.tensor].items():
            if kind != "step":
                place = optimizer.place(part, kind)
                assert all(tuple(state.shape) == extents(box) for box in place.boxes), kind
                assert place.copies > place.copy >= 0
    return {part.name: (part.boxes[0], part.tensor.tolist()) for part, _ in leaves}


def extents(box):
    return tuple(b - a for a, b in box)


@pytest.mark.parametrize(
    ("world", "cut"), [(1, None), (1, 0), (2, None), (2, 0), (3, 0), (2, 1), (3, 1), (3, 2)]
)
def test_it_is_the_definition(world, cut):
    assert {n for n, s in SHAPES.items() if factored(s)} == {"matrix", "positions", "deep"}
    for found in on_ranks(world, on_rank, cut):
        for name, (box, value) in found.items():
            expected = plain(name)[tuple(slice(a, b) for a, b in box)]
            value = torch.tensor(value, dtype=torch.float64).view(expected.shape)
            assert torch.allclose(value, expected, rtol=1e-9, atol=1e-9), name


def test_leaves_that_are_no_blocks_are_refused():
    p = torch.zeros(40, requires_grad=True)
    flat = Leaf("w", (40, 40), Rule(".*", zeros), boxes_of_flat((40, 40), 10, 50), p, cuts=None)
    with pytest.raises(UserError, match="optim.kind=adafactor adds up rows and columns"):
        optimizer_of([flat], Optimizer(kind="adafactor"))


def test_memory_is_one_and_a_half_parameters():
    p = nn.Parameter(torch.zeros(512, 2048))
    leaf = Leaf("w", (512, 2048), Rule(".*", zeros), (((0, 512), (0, 2048)),), p)
    state = Adafactor([p], [leaf], LR).state[p]
    held = sum(t.numel() * t.element_size() for t in state.values())
    assert held < 0.51 * p.numel() * 4
