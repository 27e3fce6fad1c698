"""Parallelism from outside, in one order: recompute -> compile -> shard -> values."""

import functools

import torch
from torch.utils.checkpoint import checkpoint

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.objectives.base import Objective
from vtx_scale.specs.run import System
from vtx_scale.strategies.base import Base
from vtx_scale.strategies.ddp import DDP
from vtx_scale.strategies.fsdp import FSDP
from vtx_scale.strategies.single import Single


def strategy_of(
    system: System, world: int, device: torch.device, compute: torch.dtype | None
) -> Base:
    """The strategy that `system` names; automatic: single for one process,
    else fsdp on GPUs and ddp on CPU.
    """
    name = system.strategy
    if name == "auto":
        name = "single" if world == 1 else "fsdp" if device.type == "cuda" else "ddp"
    if name == "single" and world > 1:
        raise UserError(
            f"system.strategy=single runs on one process, the world is {world}: "
            "choose ddp, fsdp or hsdp."
        )
    if name == "single":
        return Single(device)
    if name == "ddp":
        return DDP(device)
    return FSDP(device, compute=compute, replicas=system.replicas if name == "hsdp" else 1)


def apply(objective: Objective, strategy: Base, system: System) -> None:
    """Wrap the units of a module on the meta device, shard it, and give it memory on the device."""
    units = list(objective.units())
    if system.compile:  # blocks that drop have names of their own, and so code of their own
        config = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, 2 * len(units) + 8)
    for unit in units:
        if system.recompute:  # wraps forward, not the module: names never change
            unit.forward = functools.partial(checkpoint, unit.forward, use_reentrant=False)
        if system.compile:
            unit.compile()
    strategy.prepare(objective)
