"""Arithmetic that mixed precision must leave alone, and values that it has rounded."""

import contextlib

import torch
from torch import Tensor


def exact(device: torch.device) -> contextlib.AbstractContextManager:
    """A region in which products keep their operands' type under autocast too (on the meta device there is none)."""
    return contextlib.nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def whole(parameter: Tensor) -> Tensor | None:
    """The value of a parameter that lies in shards, as it is stored; None of one that does not. Every rank must ask."""
    return parameter.full_tensor().detach() if hasattr(parameter, "full_tensor") else None


def unrounded(parameter: Tensor, stored: Tensor | None, dtype: torch.dtype) -> Tensor:
    """`parameter`, with the value that was `stored` where sharding has cast it to fewer bits; its gradient is the same."""
    here = parameter.to(dtype)
    return here if stored is None else here - here.detach() + stored.to(dtype)
