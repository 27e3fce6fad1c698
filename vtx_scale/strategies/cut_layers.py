"""Layers of which a rank has its part, as blocks say by `cuts()` (Shoeybi et al. 2019, Megatron-LM,
arXiv:1909.08053).

Not torch's parallelize_module: a placement of DTensor cannot say that q, k and v stand in one
matrix and that a rank has a part of each. A layer's parameter gives way to a plain one of this
rank's part, so that whatever comes after (FSDP, the optimizer) sees ordinary tensors. Around a pair
of layers stand two sums: of the gradient where the input comes in, of the output where it leaves.
What is whole gets the same gradient on every rank of the axis, to the bit.
"""

import functools
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from vtx_scale.blocks.cuts import Colwise, Part, cut_fault, cut_layers
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.distributed.phases import PHASES
from vtx_scale.distributed.ranks import Ranks


class Enter(torch.autograd.Function):
    """x as it is; its gradient is summed over the group."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.clone(memory_format=torch.contiguous_format)
        with PHASES.collective():
            dist.all_reduce(grad, group=ctx.group)
        return grad, None


class Leave(torch.autograd.Function):
    """x summed over the group; its gradient as it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        with PHASES.collective():
            dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


# Function.apply has no types
enter: Callable[[Tensor, dist.ProcessGroup | None], Tensor] = Enter.apply
leave: Callable[[Tensor, dist.ProcessGroup | None], Tensor] = Leave.apply


def colwise(layer: nn.Linear, group: dist.ProcessGroup | None, x: Tensor) -> Tensor:
    """Some of the outputs: (..., inputs) -> (..., outputs / ranks)."""
    return F.linear(enter(x, group), layer.weight, layer.bias)


def rowwise(layer: nn.Linear, group: dist.ProcessGroup | None, x: Tensor) -> Tensor:
    """(..., inputs / ranks) -> all outputs (..., outputs)."""
    y = leave(F.linear(x, layer.weight), group)
    return y if layer.bias is None else y + layer.bias.to(y.dtype)


def share_layers(module: nn.Module, axis: Ranks) -> dict[str, Part]:
    """Cut the layers of a module on the meta device; what is left of each parameter that is cut.

    Raises UserError where the ranks of the axis do not divide its heads or widths.
    """
    if (fault := cut_fault(module, axis.world)) is not None:
        raise UserError(fault)
    parts = {}
    for name, cut in cut_layers(module).items():
        layer = module.get_submodule(name)
        holder: Any = module.get_submodule(name.rpartition(".")[0])
        holder.axis = axis
        forward = colwise if isinstance(cut, Colwise) else rowwise
        layer.forward = functools.partial(forward, cast(nn.Linear, layer), axis.group)
        for kind, p in list(layer.named_parameters(recurse=False)):
            if cut.dim >= p.ndim:
                continue
            boxes = cut.boxes(tuple(p.shape), axis.rank, axis.world)
            parts[f"{name}.{kind}"] = Part(tuple(p.shape), boxes, cut.dim)
            here = [sum(b - a for (a, b), *_ in boxes), *(b - a for a, b in boxes[0][1:])]
            layer.register_parameter(kind, nn.Parameter(p.new_empty(here), p.requires_grad))
    return parts
