"""Tensor parallelism: the ranks of an axis share the heads and hidden units of every block, and all
else is copies on them (`cut_layers` says how).

Alone (`tp`) the axis is the world, whose ranks all see the same samples. With system.tp under fsdp
the axis is neighbouring ranks, and what it leaves to a rank of each parameter is sharded over the
ranks that have the same place on their axes, which share a batch.
"""

from dataclasses import replace

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from vtx_scale.blocks.cuts import Part
from vtx_scale.distributed.ranks import GroupRanks, Ranks
from vtx_scale.distributed.sharding import Box, Leaf
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
    boxes = rows_of(part.boxes, *leaf.boxes[0][0]) if leaf.boxes else ()
    cuts = (*(leaf.cuts or ()), *(((part.dim, axis.group),) if axis.group is not None else ()))
    return replace(leaf, shape=part.shape, boxes=boxes, cuts=cuts, copies=1, copy=0)


def rows_of(boxes: tuple[Box, ...], first: int, end: int) -> tuple[Box, ...]:
    """Of boxes that lie one under another, rows first..end of what they make together."""
    found, at = [], 0
    for (a, b), *rest in boxes:
        lo, hi = max(first - at, 0), min(end - at, b - a)
        if lo < hi:
            found.append(((a + lo, a + hi), *rest))
        at += b - a
    return tuple(found)
