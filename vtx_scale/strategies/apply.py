"""Parallelism from outside, in one order: recompute -> compile -> shard -> values."""

import functools

import torch
from torch.utils.checkpoint import checkpoint

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.objectives.base import Objective
from vtx_scale.specs.imports import import_object
from vtx_scale.specs.run import System
from vtx_scale.strategies.base import Base

# imported when one is chosen: some need a library of their own
STRATEGIES = {
    "single": "vtx_scale.strategies.single:Single",
    "ddp": "vtx_scale.strategies.ddp:DDP",
    "fsdp": "vtx_scale.strategies.fsdp:FSDP",
    "hsdp": "vtx_scale.strategies.fsdp:HSDP",
    "tp": "vtx_scale.strategies.tp:TP",
    "tp_fsdp": "vtx_scale.strategies.tp:ShardedTP",
}


def strategy_of(
    system: System, world: int, device: torch.device, compute: torch.dtype | None
) -> Base:
    """The strategy that `system` names for a world of ranks on a kind of device.

    Raises UserError for a world that it does not admit.
    """
    name = system.strategy_at(world, device.type == "cuda")
    if (fault := system.world_fault(world)) is not None:
        raise UserError(fault)
    strategy: Base = import_object(STRATEGIES[name])(device, system, compute)
    return strategy


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
