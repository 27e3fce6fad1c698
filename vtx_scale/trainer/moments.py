"""AdamW with moments in bfloat16: half the memory of its state.

A moment moves by a thousandth of itself a step, less than bfloat16 resolves; so it is rounded up or
down with the probability that makes its expectation right (Zamirai et al. 2021, arXiv:2010.06192).
The bits that decide belong to (seed, step, name, place in the whole tensor), so that every world
and strategy rounds alike and a resumed run goes on the same way.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from vtx_scale.blocks.random import bits, step_key
from vtx_scale.distributed.sharding import Box, Leaf, Shape


def places(shape: Shape, boxes: tuple[Box, ...], device: torch.device) -> Tensor:
    """(n,) int32: where each element of a leaf lies in the C order of the whole, modulo 2^32."""
    parts = [] if boxes else [torch.zeros(0, dtype=torch.int32, device=device)]
    for box in boxes:
        at = torch.zeros((), dtype=torch.int64, device=device)
        for (a, b), n in zip(box, shape, strict=True):
            at = at[..., None] * n + torch.arange(a, b, device=device)
        parts.append(at.reshape(-1).to(torch.int32))
    return torch.cat(parts) if len(parts) != 1 else parts[0]


def round_by_chance(value: Tensor, chance: Tensor, into: Tensor) -> None:
    """float32 into bfloat16, away from zero where the 16 bits that are lost exceed what 16 random
    bits leave.

    value: is used up. chance: int32 in [0, 2^16), in the shape of `value`. Infinite stays infinite.
    """
    into.copy_(value.view(torch.int32).add_(chance).bitwise_and_(-0x10000).view(torch.float32))


class Rounding:
    """Writes moments of leaves into bfloat16. seed: the run's."""

    def __init__(self, leaves: Iterable[Leaf], seed: int) -> None:
        self.leaf_of = {leaf.tensor: leaf for leaf in leaves if leaf.trained}
        self.seed = seed

    def write(self, tensor: Tensor, step: int, *moments: tuple[Tensor, Tensor]) -> None:
        """Two moments at most of the leaf with this tensor, (value, where to) each; values in
        float32 are used up.
        """
        leaf = self.leaf_of[tensor]
        key = step_key(self.seed, step, tensor.device)
        at = places(leaf.shape, leaf.boxes, tensor.device)
        drawn = bits(key, leaf.name, at).view(tensor.shape)
        for shift, (value, into) in zip((0, 16), moments, strict=False):
            round_by_chance(value.float(), (drawn >> shift) & 0xFFFF, into)


class RoundedAdamW(torch.optim.Optimizer):
    """AdamW as torch has it, with `exp_avg` and `exp_avg_sq` in bfloat16; a step computes in the
    parameter's type.
    """

    def __init__(
        self,
        params: ParamsT,
        rounding: Rounding,
        lr: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self.rounding = rounding

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.move(group, p, p.grad)

    def move(self, group: dict[str, Any], p: Tensor, g: Tensor) -> None:
        """One leaf by one step, in the order of torch's own arithmetic."""
        state = self.state[p]
        state["step"] += 1
        step = int(state["step"])
        one, two = group["betas"]
        first = state["exp_avg"].to(p.dtype).lerp_(g, 1 - one)
        second = state["exp_avg_sq"].to(p.dtype).mul_(two).addcmul_(g, g, value=1 - two)
        size = group["lr"] / (1 - one**step)
        below = (second.sqrt() / (1 - two**step) ** 0.5).add_(group["eps"])
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.addcdiv_(first, below, value=-size)
        self.rounding.write(p, step, (first, state["exp_avg"]), (second, state["exp_avg_sq"]))
