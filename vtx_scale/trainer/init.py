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
from vtx_scale.distributed.sharding import Slice, whole_box
from vtx_scale.objectives.base import Objective, sources
from vtx_scale.strategies.base import Base

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


@torch.no_grad()
def initialise(module: nn.Module, initial: Callable[[str, Shape], Values], seed: int) -> None:
    """Fill every parameter and buffer of a module that lies whole here; a follower's parameters as
    their source's.
    """
    follows = sources(cast(Objective, module)) if hasattr(module, "followers") else {}
    named = (("param", module.named_parameters()), ("buffer", module.named_buffers()))
    for kind, tensors in named:
        for name, tensor in tensors:
            shape = tuple(tensor.shape)
            here = Slice(f"{kind}/{name}", shape, whole_box(shape), tensor)
            fill(here, initial, seed, follows)


@torch.no_grad()
def initialise_slices(strategy: Base, initial: Callable[[str, Shape], Values], seed: int) -> None:
    """Fill what lies on this rank; the same values in every world and under every strategy."""
    for part in strategy.slices():
        fill(part, initial, seed, strategy.sources)
    strategy.settled()


def fill(
    part: Slice, initial: Callable[[str, Shape], Values], seed: int, follows: dict[str, str]
) -> None:
    """Write the initial values of a slice, in place."""
    kind, _, name = part.key.partition("/")
    values = initial(follows.get(name, name), part.shape)
    if kind == "buffer":
        part.tensor.fill_({"zeros": 0.0, "ones": 1.0}.get(*values))
        return
    if part.tensor.numel() == 0:
        return
    name = follows.get(name, name)
    row = math.prod(part.shape[1:])
    lo, hi = (part.box[0][0] * row, part.box[0][1] * row) if part.box else (0, 1)
    rows = keyed_flat(name, lo, hi, values, seed)
    whole = rows.view(-1, *part.shape[1:]) if part.box else rows.view(())
    for dim, (a, b) in enumerate(part.box[1:], start=1):
        whole = whole.narrow(dim, a, b - a)
    part.tensor.copy_(whole)
