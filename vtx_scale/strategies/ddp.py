"""Whole copies on every rank; gradients are summed while the backward pass goes on.

Not torch's DistributedDataParallel: that one rebuilds its buckets after its first step, so that
with three ranks or more a resumed run would add in another order than an undisturbed one. Here the
buckets are fixed by the order of the parameters, last first, and leave in that order on every rank.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vtx_scale.distributed.phases import PHASES
from vtx_scale.objectives.base import Objective
from vtx_scale.strategies.base import Base

BUCKET_BYTES = 25 << 20
Hook = Callable[[Tensor], None]


class DDP(Base):
    name = "ddp"

    def prepare(self, objective: Objective) -> None:
        super().prepare(objective)
        self.buckets: list[list[nn.Parameter]] = [[]]
        size = 0
        for p in reversed([p for p in self.objective.parameters() if p.requires_grad]):
            if size >= BUCKET_BYTES:
                self.buckets.append([])
                size = 0
            self.buckets[-1].append(p)
            size += p.numel() * p.element_size()
        self.live = False
        for k, bucket in enumerate(self.buckets):
            for p in bucket:
                hook: Callable[[Hook], object] = p.register_post_accumulate_grad_hook
                hook(functools.partial(self._arrived, k))

    @contextlib.contextmanager
    def micro(self, last: bool) -> Iterator[None]:
        self.live = last and self.all.world > 1
        self.waiting = [len(b) for b in self.buckets]
        self.sent: list[tuple[dist.Work, Tensor, list[nn.Parameter]]] = []
        yield
        if self.live:
            # parameters without a gradient: their bucket goes now
            while len(self.sent) < len(self.buckets):
                self._send(len(self.sent))
            for work, flat, bucket in self.sent:
                with PHASES.collective():
                    work.wait()
                torch._foreach_copy_(grads(bucket), list(views(flat, bucket)))
            self.sent = []
            self.live = False

    def _arrived(self, k: int, _: Tensor) -> None:
        self._ready(k)

    def _ready(self, k: int) -> None:
        if not self.live:
            return
        self.waiting[k] -= 1
        while len(self.sent) < len(self.buckets) and self.waiting[len(self.sent)] == 0:
            self._send(len(self.sent))

    def _send(self, k: int) -> None:
        bucket = self.buckets[k]
        flat = torch.cat([g.reshape(-1) for g in grads(bucket)])
        self.sent.append((dist.all_reduce(flat, group=self.all.group, async_op=True), flat, bucket))


def grads(bucket: list[nn.Parameter]) -> list[Tensor]:
    """The gradients of a bucket; a parameter without one gets zeros."""
    for p in bucket:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    return [p.grad for p in bucket if p.grad is not None]


def views(flat: Tensor, bucket: list[nn.Parameter]) -> Iterator[Tensor]:
    at = 0
    for p in bucket:
        yield flat[at : at + p.numel()].view_as(p)
        at += p.numel()
