"""ZeRO (Rajbhandari et al. 2019, arXiv:1910.02054) by DeepSpeed, which cuts, reduces, gathers and
offloads. Norms, verdict and optimizer are ours, on leaves: its own step and clipping never run.

DeepSpeed averages over the ranks, so a backward pass starts from the loss times their number. Its
masters are copies of the parameters in float32 too: a leaf is a part of one, and `publish` brings
it to what the forward pass reads.
"""

import abc
import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.distributed.sharding import Leaf
from vtx_scale.strategies.base import Base, Losses
from vtx_scale.strategies.deepspeed_package import deepspeed_for, let_go

BUCKET = 1 << 24  # elements that are reduced, gathered or fetched ahead as one


class Zero(Base, abc.ABC):
    """What the three stages share; `zero` is DeepSpeed's optimizer, which holds the masters."""

    stage: int

    def parts(self) -> list[Leaf]:
        if self.compute is not None:  # DeepSpeed turns autocast off around what it calls
            cast = torch.autocast(self.device.type, self.compute)
            self.objective.forward = cast(self.objective.forward)  # type: ignore[method-assign]
        trained = [p for p in self.objective.parameters() if p.requires_grad]
        stateless = torch.optim.SGD(trained, lr=0.0)  # never steps
        self.engine, *_ = deepspeed_for(self.device).initialize(
            model=self.objective, optimizer=stateless, config=self.config()
        )
        self.zero = self.engine.optimizer
        return self.cut()

    @abc.abstractmethod
    def cut(self) -> list[Leaf]:
        """The leaves, once DeepSpeed has its masters."""

    @abc.abstractmethod
    def gradients(self) -> Iterator[tuple[Leaf, Tensor]]:
        """The trained leaves of which this rank holds something, each with its gradient (n,)."""

    def config(self) -> dict[str, Any]:
        """What DeepSpeed is asked for: managed accumulation, sums in buckets, no clipping."""
        cut: dict[str, Any] = {
            "stage": self.stage,
            "overlap_comm": False,
            "reduce_bucket_size": BUCKET,
            "allgather_bucket_size": BUCKET,
            "memory_efficient_linear": False,  # would replace torch's in the whole process
            "stage3_prefetch_bucket_size": BUCKET,
            "stage3_max_live_parameters": 4 * BUCKET,
            **dict.fromkeys(("stage3_max_reuse_distance", "stage3_param_persistence_threshold"), 0),
        }
        offloaded = {"none": [], "optimizer": ["optimizer"], "all": ["optimizer", "param"]}
        for what in offloaded[self.system.offload]:
            pinned = self.device.type == "cuda"
            cut[f"offload_{what}"] = {"device": "cpu", "pin_memory": pinned}
        return {
            "train_micro_batch_size_per_gpu": 1,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": cut,
        }

    def forward(self, batch: Batch, step: int) -> Losses:
        return self.engine(batch, step)  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def micro(self, last: bool) -> Iterator[None]:
        self.engine.set_gradient_accumulation_boundary(last)
        yield
        if last:
            for leaf, grad in self.gradients():
                leaf.tensor.grad = grad

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss * self.all.world)

    def close(self) -> None:
        self.engine.destroy()
        let_go()
