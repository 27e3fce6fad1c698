"""Parallelism from outside, in one order: recompute -> compile -> shard -> values."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
    noop_context_fn,
)

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
    "hsdp": "vtx_scale.strategies.hsdp:HSDP",
    "tp": "vtx_scale.strategies.tp:TP",
    "tp_fsdp": "vtx_scale.strategies.tp:ShardedTP",
    "zero1": "vtx_scale.strategies.zero12:Zero1",
    "zero2": "vtx_scale.strategies.zero12:Zero2",
    "zero3": "vtx_scale.strategies.zero3:Zero3",
    "fairscale": "vtx_scale.strategies.fairscale:Fairscale",
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
    return import_object(STRATEGIES[name])(device, system, compute)  # type: ignore[no-any-return]


# what selective recomputation keeps: most of a unit's time goes there
PRODUCTS = frozenset(
    getattr(torch.ops.aten, name).default
    for name in (
        "mm",
        "addmm",
        "bmm",
        "baddbmm",
        "convolution",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
    )
    if hasattr(torch.ops.aten, name)
)


def keep_products() -> Any:
    """The two contexts of a checkpoint, of forward pass and recomputation: matrix products,
    convolutions and attention are kept, the rest is computed again.
    """
    contexts: Callable[[Any], Any] = create_selective_checkpoint_contexts  # has no types
    return contexts(policy)


def policy(_: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """What becomes of an operator's result."""
    kept = operator in PRODUCTS
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def apply(objective: Objective, strategy: Base, system: System) -> None:
    """Wrap the units of a module on the meta device, shard it, and give it memory on the device.

    Raises UserError where micro-batches cannot be computed again as `system` says.
    """
    units, mixed = list(objective.units()), strategy.compute is not None
    if (fault := system.recompute_fault(objective.spec.separable, mixed)) is not None:
        raise UserError(fault)
    if system.compile:  # blocks that drop have names of their own, and so code of their own
        config = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, 2 * len(units) + 8)
    for unit in units:
        if system.recompute != "none":  # wraps forward, not the module: names never change
            contexts = keep_products if system.recompute == "selective" else noop_context_fn
            unit.forward = functools.partial(
                checkpoint, unit.forward, use_reentrant=False, context_fn=contexts
            )
        if system.compile:
            unit.compile()
    strategy.prepare(objective)
