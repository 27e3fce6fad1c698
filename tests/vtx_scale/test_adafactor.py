"""Adafactor against its definition written out in float64, whole and cut over ranks."""

import pytest
import torch
from torch import nn

from tests.ranks import gathered, on_ranks
from vtx_scale.distributed.sharding import local
from vtx_scale.trainer.adafactor import Adafactor, factored

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
    dist = gathered()
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))

    def share(t):
        return distribute_tensor(t, mesh, [Shard(0)]) if cut else t

    parameters = {name: nn.Parameter(share(numbers(name, 99))) for name in SHAPES}
    group = {"params": list(parameters.values()), "weight_decay": DECAY}
    optimizer = Adafactor([group], LR, shards=mesh.get_group() if cut else None)
    for step in range(1, STEPS + 1):
        for name, p in parameters.items():
            p.grad = share(numbers(name, step))
        optimizer.step()
    for name, p in parameters.items():
        for kind, state in optimizer.state[p].items():
            if kind != "step":
                _, box, _ = optimizer.place(p, kind)
                assert tuple(local(state).shape) == tuple(b - a for a, b in box), (name, kind)
    return {
        name: (p.full_tensor() if cut else p).detach().tolist() for name, p in parameters.items()
    }


@pytest.mark.parametrize(("world", "cut"), [(1, False), (1, True), (2, True), (3, True)])
def test_it_is_the_definition(world, cut):
    assert {n for n, s in SHAPES.items() if factored(s)} == {"matrix", "positions", "deep"}
    for found in on_ranks(world, on_rank, cut):
        for name, value in found.items():
            assert torch.allclose(
                torch.tensor(value, dtype=torch.float64), plain(name), rtol=1e-9, atol=1e-9
            ), name


def test_memory_is_one_and_a_half_parameters():
    p = nn.Parameter(torch.zeros(512, 2048))
    state = Adafactor([p], LR).state[p]
    held = sum(t.numel() * t.element_size() for t in state.values())
    assert held < 0.51 * p.numel() * 4
