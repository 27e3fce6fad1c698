"""FSDP2: each unit's parameters, gradients and optimizer state are sharded over the ranks. With
`system.offload` they lie in the host's memory, where the optimizer moves them.

Gradients are summed, never averaged.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from vtx_scale.blocks.rules import float32_units, table_of
from vtx_scale.distributed.sharding import Leaf, box_of, local
from vtx_scale.objectives.base import Objective
from vtx_scale.specs.run import System
from vtx_scale.strategies.base import Base


class FSDP(Base):
    name = "fsdp"

    def __init__(
        self, device: torch.device, system: System | None = None, compute: torch.dtype | None = None
    ) -> None:
        super().__init__(device, system, compute)
        self.mesh = self.mesh_of()
        self.offloads = self.system.offload != "none"

    def mesh_of(self) -> DeviceMesh:
        """All ranks, each with a shard."""
        return init_device_mesh(self.device.type, (self.all.world,), mesh_dim_names=("shard",))

    def prepare(self, objective: Objective) -> None:
        exact, reduced = MixedPrecisionPolicy(), torch.float32 if self.compute else None
        mixed = MixedPrecisionPolicy(param_dtype=self.compute, reduce_dtype=reduced)
        pinned = self.device.type == "cuda"
        host = CPUOffloadPolicy(pin_memory=pinned) if self.offloads else OffloadPolicy()
        for unit in float32_units(objective, table_of(objective)):
            fully_shard(unit, mesh=self.mesh, mp_policy=exact, offload_policy=host)
        for unit in [*objective.units(), objective]:
            if not isinstance(unit, FSDPModule):  # a unit that keeps float32 is sharded already
                fully_shard(unit, mesh=self.mesh, mp_policy=mixed, offload_policy=host)
        # a probe is a forward pass of the whole, which gathers and casts
        register_fsdp_forward_method(objective, "call")
        self.sharded = [m for m in objective.modules() if isinstance(m, FSDPModule)]
        for part in self.sharded:  # both are needed for a sum on gloo
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)
        super().prepare(objective)

    def materialise(self, objective: Objective) -> Objective:
        if not self.offloads:
            return super().materialise(objective)
        for module in objective.to_empty(device="cpu").modules():
            for name, buffer in module.named_buffers(recurse=False):  # FSDP gathers no buffers
                module._buffers[name] = buffer.to(self.device)
        return objective

    def parts(self) -> list[Leaf]:
        root: Any = self.objective
        # FSDP pads what does not divide at its first pass, which would move the local tensors
        root._get_fsdp_state()._lazy_init()
        ways, cuts = self.mesh["shard"].size(), ((0, self.mesh.get_group("shard")),)
        copies, copy = self.all.world // ways, self.all.rank // ways
        self.parameters = dict(root.named_parameters())  # a pass puts whole ones in their place
        leaves = []
        for name, p in self.parameters.items():
            here = local(p.detach()).requires_grad_(p.requires_grad)
            shape, boxes = tuple(p.shape), (box_of(p),)  # one of no rows where there are none here
            leaves.append(Leaf(name, shape, self.rules[name], boxes, here, copies, copy, cuts))
        return leaves

    def call(self, function: Callable[..., Tensor], *rows: Tensor) -> Tensor:
        return self.objective.call(function, *rows)

    @contextlib.contextmanager
    def micro(self, last: bool) -> Iterator[None]:
        root: Any = self.objective
        root.set_requires_gradient_sync(last)
        root.set_is_last_backward(last)
        yield
        if last:
            for leaf in self.leaves():
                grad = self.parameters[leaf.name].grad
                leaf.tensor.grad = None if grad is None else local(grad)

    def reshard(self) -> None:
        for part in self.sharded:  # the root keeps its whole parameters until a backward pass comes
            part.reshard()
