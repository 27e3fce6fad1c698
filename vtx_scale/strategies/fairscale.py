"""fairscale's sharded optimizer state (OSS) and ShardedDataParallel: whole parameters on every
rank, and each has one owner, which alone gets its summed gradient, moves it, and sends it to all.
Followers are whole copies.

OSS says who owns what and broadcasts; norms and optimizer are ours. fairscale averages over the
ranks, so a backward pass starts from the loss times their number.
"""

import contextlib
from collections.abc import Iterator

import torch
from fairscale.nn.data_parallel import ShardedDataParallel
from fairscale.optim.oss import OSS
from torch import Tensor

from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.distributed.sharding import Leaf
from vtx_scale.strategies.base import Base, Losses, whole_leaves


class Fairscale(Base):
    name = "fairscale"

    def parts(self) -> list[Leaf]:
        trained = [p for p in self.objective.parameters() if p.requires_grad]
        self.owners = OSS(trained, optim=torch.optim.SGD, lr=0.0, broadcast_fp16=False)
        self.sharded = ShardedDataParallel(
            self.objective,
            self.owners,
            broadcast_buffers=False,
            sync_models_at_startup=False,
            reduce_buffer_size=0,
            auto_refresh_trainable=False,
        )
        leaves = whole_leaves(self.objective, self.rules, self.all)
        for k, (leaf, p) in enumerate(zip(leaves, self.objective.parameters(), strict=True)):
            if p.requires_grad:
                own = self.owners._param_to_rank[p] == self.all.rank
                here = p if own else p.detach().new_empty(0).requires_grad_()
                boxes = leaf.boxes if own else ()
                leaves[k] = Leaf(leaf.name, leaf.shape, leaf.rule, boxes, here)
        return leaves

    def forward(self, batch: Batch, step: int) -> Losses:
        losses: Losses = self.sharded(batch, step)
        return losses

    @contextlib.contextmanager
    def micro(self, last: bool) -> Iterator[None]:
        with contextlib.nullcontext() if last else self.sharded.no_sync():
            yield
        waiting = self.sharded._grad_to_be_reduced
        if last and any(waiting):  # parameters that the last micro-batch gave no gradient
            for waits, p in zip(waiting, self.sharded._trainable_params, strict=True):
                if waits and p.grad is None:
                    p.grad = torch.zeros_like(p)
            self.sharded.reduce()

    def backward(self, loss: Tensor) -> None:
        super().backward(loss * self.all.world)

    def publish(self) -> None:
        self.owners._broadcast_params()

    def settled(self) -> None:
        self.publish()
