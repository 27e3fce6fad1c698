"""FSDP2: each unit's parameters, gradients and optimizer state are sharded over the ranks (`fsdp`),
or over the ranks of one replica while replicas hold copies (`hsdp`).

Gradients are summed, never averaged.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from vtx_scale.blocks.rules import float32_units, table_of
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.objectives.base import Objective
from vtx_scale.strategies.base import Base


class FSDP(Base):
    name = "fsdp"

    def __init__(
        self,
        device: torch.device,
        group: dist.ProcessGroup | None = None,
        compute: torch.dtype | None = None,
        replicas: int = 1,
    ) -> None:
        super().__init__(device, group)
        if self.world % replicas:
            raise UserError(
                f"hsdp with system.replicas={replicas} needs a world that it divides, "
                f"not {self.world}."
            )
        self.copies = replicas
        self.policy = MixedPrecisionPolicy(
            param_dtype=compute, reduce_dtype=torch.float32 if compute else None
        )
        self.mesh: DeviceMesh
        if replicas > 1:
            self.mesh = init_device_mesh(
                device.type,
                (replicas, self.world // replicas),
                mesh_dim_names=("replicate", "shard"),
            )
        else:
            self.mesh = init_device_mesh(device.type, (self.world,), mesh_dim_names=("shard",))

    def prepare(self, objective: Objective) -> None:
        for unit in float32_units(objective, table_of(objective)):
            fully_shard(unit, mesh=self.mesh, mp_policy=MixedPrecisionPolicy())
        for unit in [*objective.units(), objective]:
            if not isinstance(unit, FSDPModule):  # a unit that keeps float32 is sharded already
                fully_shard(unit, mesh=self.mesh, mp_policy=self.policy)
        # a probe is a forward pass of the whole, which gathers and casts
        register_fsdp_forward_method(objective, "call")
        self.parts = [m for m in objective.modules() if isinstance(m, FSDPModule)]
        for part in self.parts:  # both are needed for a sum on gloo
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)
        super().prepare(objective)

    def call(self, function: Callable[..., Tensor], *rows: Tensor) -> Tensor:
        out: Tensor = self.objective.call(function, *rows)
        return out

    @contextlib.contextmanager
    def micro(self, last: bool) -> Iterator[None]:
        root = self.objective
        assert isinstance(root, FSDPModule)
        root.set_requires_gradient_sync(last)
        root.set_is_last_backward(last)
        yield

    def reshard(self) -> None:
        for part in self.parts:  # the root keeps its whole parameters until a backward pass comes
            part.reshard()

    def shard_group(self) -> dist.ProcessGroup:
        return self.mesh.get_group("shard")

    def replicas(self) -> tuple[int, int]:
        return self.copies, self.rank // (self.world // self.copies)
