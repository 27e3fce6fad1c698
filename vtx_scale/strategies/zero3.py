"""ZeRO 3: parameters, trained, frozen and following, are cut too, each into flat intervals of one
length, of which the last are padded. Those of a module are gathered while it computes.

An objective comes from the meta device one parameter at a time: no rank ever holds all of it.
Outside of a forward pass its parameters are empty.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.distributed.sharding import Leaf, boxes_of_flat
from vtx_scale.objectives.base import Objective
from vtx_scale.strategies.base import move_followers
from vtx_scale.strategies.deepspeed_package import deepspeed_for
from vtx_scale.strategies.zero import Zero


class Zero3(Zero):
    name = "zero3"
    stage = 3

    def prepare(self, objective: Objective) -> None:
        if (fault := self.system.recompute_fault(objective.spec.separable)) is not None:
            raise UserError(fault)
        init = deepspeed_for(self.device).zero.Init
        into = init(module=nn.Module(), config_dict_or_path=self.config())
        cut: dict[int, nn.Parameter] = {}
        for module in objective.modules():
            for name, p in module._parameters.items():
                if p is None:
                    continue
                if id(p) not in cut:  # else one that is shared
                    here = torch.empty_like(p, device=self.device)
                    cut[id(p)] = nn.Parameter(here, requires_grad=p.requires_grad)
                    into._convert_to_deepspeed_param(cut[id(p)])
                    cut[id(p)].partition()  # type: ignore[attr-defined]
                module._parameters[name] = cut[id(p)]
        super().prepare(objective)

    def cut(self) -> list[Leaf]:
        self.masters: dict[int, Leaf] = {}
        named: list[tuple[str, Any]] = list(self.objective.named_parameters())
        for name, p in named:
            shape, size = tuple(p.ds_shape), p.ds_tensor.ds_numel
            lo, hi = (min(k * size, p.ds_numel) for k in (self.all.rank, self.all.rank + 1))
            here = p.ds_tensor
            if p.requires_grad:
                i, at, _ = self.zero.grad_position[self.zero.get_param_id(p)]
                here = self.zero.fp32_partitioned_groups_flat[i].narrow(0, at, size)
            here = here.detach()[: hi - lo].requires_grad_(p.requires_grad)
            boxes = boxes_of_flat(shape, lo, hi)
            self.masters[id(p)] = Leaf(name, shape, self.rules[name], boxes, here, cuts=None)
        return list(self.masters.values())

    def gradients(self) -> Iterator[tuple[Leaf, Tensor]]:
        at = 0
        for p in itertools.chain(*self.zero.fp16_groups):
            leaf = self.masters[id(p)]
            yield leaf, self.zero.grad_partitions_flat_buffer[at : at + leaf.tensor.numel()]
            at += p.ds_tensor.ds_numel

    def call(self, function: Callable[..., Tensor], *rows: Tensor) -> Tensor:
        whole: Any = self.objective
        plain, whole.forward = whole.forward, function
        try:  # the hooks of the whole gather what lies outside of its parts
            out: Tensor = whole(*rows)
            return out
        finally:
            whole.forward = plain

    def publish(self) -> None:
        self.zero._partition_all_parameters()
        for i in range(len(self.zero.fp16_groups)):
            self.zero._reassign_or_swap_out_partitioned_parameters(i)

    def settled(self) -> None:
        self.publish()

    def follow(self, step: int) -> None:
        move_followers(self.objective, step, lambda p: p.ds_tensor)  # type: ignore[attr-defined]

    def reshard(self) -> None:
        self.zero._partition_all_parameters()

    def clear(self) -> None:
        super().clear()
        self.zero.zero_grad()
        self.zero._pre_step()
        self.zero._partition_all_parameters()
        self.zero.grad_partitions_flat_buffer.zero_()  # a parameter without a gradient left one
