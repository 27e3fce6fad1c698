"""ZeRO 1 and 2: whole parameters on every rank; masters and the optimizer's state are cut into flat
intervals over all parameters, in stage 2 the summed gradients too. Followers are whole copies.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vtx_scale.distributed.sharding import Box, Leaf, boxes_of_flat
from vtx_scale.strategies.base import whole_leaves
from vtx_scale.strategies.zero import Zero


class Zero1(Zero):
    name = "zero1"
    stage = 1

    def cut(self) -> list[Leaf]:
        leaves = whole_leaves(self.objective, self.rules, self.all)
        self.masters: dict[int, Leaf] = {}
        parameters: list[Any] = list(self.objective.parameters())
        for k, (leaf, p) in enumerate(zip(leaves, parameters, strict=True)):
            if p.requires_grad:
                boxes: tuple[Box, ...] = ()
                here = p.detach().new_empty(0)
                if (held := p._hp_mapping) is not None:  # a part of it lies in this interval
                    lo, n = held.lp_fragment_address.start, held.lp_fragment_address.numel
                    boxes = boxes_of_flat(leaf.shape, lo, lo + n)
                    here = held.get_hp_fragment().detach()
                leaves[k] = self.masters[id(p)] = Leaf(
                    leaf.name, leaf.shape, leaf.rule, boxes, here.requires_grad_(), cuts=None
                )
        return leaves

    def gradients(self) -> Iterator[tuple[Leaf, Tensor]]:
        for i, params in enumerate(self.zero.params_in_partition):
            pieces = self.offloaded(i) if self.zero.cpu_offload else self.zero.averaged_gradients[i]
            # among them what fills the interval up
            pieces = [g for g in pieces if not getattr(g, "_zero_padding", False)]
            for p, piece in zip(params, pieces, strict=False):
                yield self.masters[id(p)], piece.reshape(-1)

    def offloaded(self, i: int) -> list[Tensor]:
        """The gradients of interval i: what the last micro-batch brought, or the sum with those
        before, which alone has a parameter to which the last one gave none.
        """
        self.zero._wait_for_offload_copies()
        pieces, last = [], self.zero.single_partition_of_fp32_groups[i].grad
        for k in map(self.zero.get_param_id, self.zero.params_in_partition[i]):
            _, lo, at, n = self.zero.grad_position[k]
            summed = k in self.zero._offload_accumulated_param_ids
            grad, at = (self.zero.accumulated_grads_in_cpu[k], lo) if summed else (last, at)
            pieces.append(grad[at : at + n])
        return pieces

    def publish(self) -> None:
        self.zero.update_lp_params()

    def settled(self) -> None:
        self.publish()

    def clear(self) -> None:
        super().clear()
        self.zero.zero_grad()
        self.zero._release_preflattened_grad_buffers()
        self.zero.micro_step_id = -1
        for i in self.zero.averaged_gradients:
            self.zero.averaged_gradients[i] = None
            self.zero.all_grad_tensors[i] = None
        if self.zero.cpu_offload:  # a parameter without a gradient leaves the last one there
            self.zero.reset_cpu_buffers()
            self.zero._offload_accumulated_param_ids.clear()
            last = [m.grad for m in self.zero.single_partition_of_fp32_groups]
            torch._foreach_zero_([*last, *self.zero.accumulated_grads_in_cpu.values()])


class Zero2(Zero1):
    name = "zero2"
    stage = 2
