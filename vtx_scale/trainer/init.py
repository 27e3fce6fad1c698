"""Initial values keyed by parameter name: a sharded build on the meta device equals a whole one,
in every world.

A tensor is cut in C order into blocks of BLOCK elements; each block has its own generator, seeded
by (run seed, name, block). A rank makes the blocks that its slice touches and no others.
"""

import hashlib
import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from vtx_scale.blocks.rules import Shape, Values
from vtx_scale.distributed.sharding import box_of, local
from vtx_scale.objectives.base import Objective

BLOCK = 1 << 14


def keyed_flat(name: str, lo: int, hi: int, initial: Values, seed: int) -> Tensor:
    """Elements lo..hi of the C-order tensor `name`, float32 on the CPU."""
    kind, number = initial
    if kind in ("zeros", "ones", "constant"):
        return torch.full((hi - lo,), {"zeros": 0.0, "ones": 1.0}.get(kind, number))
    out = torch.empty(hi - lo)
    for k in range(lo // BLOCK, -(-hi // BLOCK)):
        digest = hashlib.sha256(f"{seed}/{name}/{k}".encode()).digest()[:8]
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        if kind == "uniform":
            block = (torch.rand(BLOCK, generator=generator) * 2 - 1) * number
        elif kind == "normal":
            block = torch.randn(BLOCK, generator=generator) * number
        elif kind == "truncated":
            # within two standard deviations, by inverting the distribution function
            low = math.erf(-2 / math.sqrt(2))
            u = torch.rand(BLOCK, generator=generator, dtype=torch.float64) * (-2 * low) + low
            block = (torch.erfinv(u.clamp(-1 + 1e-12, 1 - 1e-12)) * math.sqrt(2) * number).float()
        else:
            raise ValueError(f"initial value of {name}: unknown kind {kind!r}")
        a, e = max(lo, k * BLOCK), min(hi, (k + 1) * BLOCK)
        out[a - lo : e - lo] = block[a - k * BLOCK : e - k * BLOCK]
    return out


def sources(objective: Objective) -> dict[str, str]:
    """Name of a follower's parameter -> name of the one that it follows,
    whose initial values it shares.
    """
    names = {id(p): n for n, p in objective.named_parameters()}
    return {
        names[id(t)]: names[id(s)]
        for f in objective.followers()
        for t, s in zip(f.teacher.parameters(), f.student.parameters(), strict=True)
    }


@torch.no_grad()
def initialise(module: nn.Module, initial: Callable[[str, Shape], Values], seed: int) -> None:
    """Fill every parameter's local part, in place; a follower's as its source's."""
    source = sources(cast(Objective, module)) if hasattr(module, "followers") else {}
    for name, parameter in module.named_parameters():
        name = source.get(name, name)
        box, here = box_of(parameter), local(parameter)
        if here.numel() == 0:
            continue
        row = math.prod(parameter.shape[1:])
        lo, hi = (box[0][0] * row, box[0][1] * row) if box else (0, 1)
        rows = keyed_flat(name, lo, hi, initial(name, parameter.shape), seed)
        whole = rows.view(-1, *parameter.shape[1:]) if box else rows.view(())
        for dim, (a, b) in enumerate(box[1:], start=1):
            whole = whole.narrow(dim, a, b - a)
        here.copy_(whole)
    for name, buffer in module.named_buffers():
        kind, number = initial(name, buffer.shape)
        local(buffer).fill_({"zeros": 0.0, "ones": 1.0}.get(kind, number))
