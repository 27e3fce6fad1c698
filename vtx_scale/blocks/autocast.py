"""Arithmetic that mixed precision must leave alone, and values that it has rounded."""

import contextlib

import torch
from torch import Tensor


def no_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """A region in which products keep their operands' type under autocast too; of the meta device,
    which has none, the planner takes the CPU's for it.
    """
    return torch.autocast("cpu" if device.type == "meta" else device.type, enabled=False)


def full_tensor(parameter: Tensor) -> Tensor | None:
    """The value of a parameter that lies in shards, as it is stored; None of one that does not.

    Every rank must ask.
    """
    return parameter.full_tensor().detach() if hasattr(parameter, "full_tensor") else None


def with_master_value(parameter: Tensor, master: Tensor | None, dtype: torch.dtype) -> Tensor:
    """`parameter`, with its `master` value where sharding has cast it to fewer bits;
    its gradient is the same.
    """
    here = parameter.to(dtype)
    return here if master is None else here - here.detach() + master.to(dtype)
