"""Tensor parallelism: the ranks of an axis share the heads and hidden units of every block, and all
else is copies on them (`cut_layers` says how).

Alone (`tp`) the axis is the world, whose ranks all see the same samples. With system.tp under fsdp
the axis is neighbouring ranks, and what it leaves to a rank of each parameter is sharded over the
ranks that have the same place on their axes, which share a batch.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from vtx_scale.blocks.cuts import Part
from vtx_scale.distributed.phases import PHASES
from vtx_scale.distributed.ranks import GroupRanks, Ranks
from vtx_scale.distributed.sharding import Leaf, rows_of
from vtx_scale.objectives.base import Objective
from vtx_scale.specs.run import System
from vtx_scale.strategies.base import Base
from vtx_scale.strategies.cut_layers import share_layers
from vtx_scale.strategies.fsdp import FSDP


class TP(Base):
    name = "tp"

    def __init__(
        self,
        device: torch.device,
        system: System | None = None,
        compute: torch.dtype | None = None,
    ) -> None:
        super().__init__(device, system, compute)
        self.axis, self.data = self.axes()
        self.speaks = self.axis.rank == 0

    def axes(self) -> tuple[Ranks, Ranks]:
        """The ranks that share blocks, and those that share a batch."""
        return GroupRanks(dist.group.WORLD), Ranks()

    def prepare(self, objective: Objective) -> None:
        self.cut = share_layers(objective, self.axis)
        super().prepare(objective)

    @contextlib.contextmanager
    def micro(self, last: bool) -> Iterator[None]:
        with super().micro(last):
            yield
        if last:
            self.align()

    def align(self) -> None:
        """Give copies the gradients of the axis's first rank: kernels that are not deterministic,
        and another order of sums, must not let them drift apart.
        """
        grads = [g for leaf in self.leaves() if leaf.copies > 1 and (g := leaf.grad) is not None]
        if self.axis.world > 1 and any(g.numel() for g in grads):
            flat = torch.cat([g.reshape(-1) for g in grads])
            with PHASES.collective():
                dist.broadcast(flat, group=self.axis.group, group_src=0)
            same = torch.split(flat, [g.numel() for g in grads])
            torch._foreach_copy_(grads, [t.view_as(g) for t, g in zip(same, grads, strict=True)])

    def parts(self) -> list[Leaf]:
        return [placed(leaf, self.cut.get(leaf.name), self.axis) for leaf in super().parts()]


class ShardedTP(TP, FSDP):
    name = "fsdp"

    def mesh_of(self) -> DeviceMesh:
        """Of the ranks with the same place on their axes."""
        size = self.system.tp or 1
        shape, names = (self.all.world // size, size), ("shard", "tp")
        self.meshes = init_device_mesh(self.device.type, shape, mesh_dim_names=names)
        return self.meshes["shard"]

    def axes(self) -> tuple[Ranks, Ranks]:
        return GroupRanks(self.meshes.get_group("tp")), GroupRanks(self.meshes.get_group("shard"))


def placed(leaf: Leaf, part: Part | None, axis: Ranks) -> Leaf:
    """A leaf of what the axis left to this rank, as it lies in the whole parameter; part: None
    where the axis left all of it.
    """
    if part is None:
        return replace(leaf, copies=axis.world, copy=axis.rank)
    boxes = rows_of(part.boxes, *leaf.boxes[0][0])
    cuts = (*(leaf.cuts or ()), *(((part.dim, axis.group),) if axis.group is not None else ()))
    return replace(leaf, shape=part.shape, boxes=boxes, cuts=cuts, copies=1, copy=0)
