"""What an objective is: modules, a reader of samples, a loss."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vtx_scale.blocks.random import step_key
from vtx_scale.blocks.rows import VIEWS, Rows
from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.distributed.ranks import Ranks
from vtx_scale.specs.run import Augment, Spec


@dataclass(frozen=True)
class Follower:
    """An average of another module's parameters, moved after each step that counted and never by the optimizer.

    Its buffers (running statistics) are its own.

    teacher, student: submodules of one layout; momentum(step) is the share of its own value that the teacher keeps.
    The teacher starts from the student's values, and its units belong in `Objective.units` too.
    """

    teacher: nn.Module
    student: nn.Module
    momentum: Callable[[int], float]


class Objective(nn.Module):
    """Built on the meta device: `__init__` depends on the spec alone and computes no values.

    A subclass gives `reader`, `forward`, `units`, `initial`, and where they differ the rest. `forward(batch, step)` gives the
    sum of the loss over the batch's valid slots, and numbers to log by name: means over these slots, which the trainer
    averages over micro-batches and ranks. Trained parameters have at least one dimension (a scale has shape (1,)),
    because FSDP shards no scalars.
    """

    separable: bool = True  # may the batch be cut into micro-batches whose losses add up?
    heeds: tuple[str, ...] | None = None  # fields of `data`, beside what all heed; one that is set in vain is refused
    augments: Literal["no", "pictures", "all"] = "no"  # what of `data.augment` it makes: RandAugment alone, or all of it
    micro_batch: int | None = None  # set by the trainer; an objective that is not separable heeds it itself
    heads: tuple[str, ...] = ()  # prefixes of what `init.head=new` starts anew
    seed: int = 0  # the run's, set by the trainer, as are the next two
    steps: int = 1  # of the whole run
    augment: Augment = Augment()

    def __init__(self, spec: Spec, ranks: Ranks) -> None:
        super().__init__()
        self.spec, self.ranks = spec, ranks
        self.probes: dict[str, Callable[..., Any]] = {}

    @staticmethod
    def reader(spec: Any, data: Any, train: bool) -> Any:
        """A picklable `vtx_scale.data_pipeline.loader.Reader`."""
        raise TypeError("an objective needs a reader")

    def units(self) -> Iterable[nn.Module]:
        """Blocks that are sharded, compiled and recomputed as one."""
        return ()

    def exact_units(self) -> Iterable[nn.Module]:
        """Units whose parameters stay in their own type under mixed precision, where sharding would cast them."""
        return ()

    def prepare(self, batch: Batch, step: int) -> Batch:
        """What is done once a step to this rank's whole batch before it is cut into micro-batches (mixing of samples)."""
        return batch

    def rows(self, batch: Batch, step: int, views: int = 1, call: str = "") -> Rows:
        """What networks in training are told of batch rows of which each stands `views` times, view after view of a slot."""
        device = batch.valid.device
        view = torch.arange(views, device=device)
        return Rows(batch.valid.repeat_interleave(views), (batch.slot[:, None] * VIEWS + view).flatten(),
                    step_key(self.seed, step, device), self.ranks, call)

    def frozen(self, step: int) -> Iterable[nn.Parameter]:
        """Trained parameters that the optimizer leaves alone at this step; once let go, never frozen again."""
        return ()

    def borrowed(self) -> dict[str, str]:
        """Prefix of a part's names -> run folder or exported weights that its values come from (a teacher)."""
        return {}

    def count(self, batch: Any) -> Tensor:
        """What the summed loss is divided by, before the ranks are added up: valid slots."""
        return batch.valid.sum()

    def followers(self) -> Iterable[Follower]:
        """Modules that follow others; the strategy moves them on its local shards."""
        return ()

    def initial(self, name: str, shape: torch.Size) -> tuple[str, float]:
        """The kind of a tensor's initial values and its number (`vtx_scale.trainer.init`)."""
        raise TypeError(f"{type(self).__name__}.initial says nothing of {name}")

    def undecayed(self, name: str, parameter: Tensor) -> bool:
        """Whether weight decay leaves a parameter alone: vectors and scales."""
        return parameter.ndim < 2

    def head(self, name: str) -> bool:
        """Whether a decayed parameter is a classifier's matrix, for `optim.head_decay`."""
        return False

    def trunk(self, name: str) -> bool:
        """Whether a parameter belongs to the part that learns at `optim.trunk_lr`."""
        return False

    def ask(self, function: Callable[..., Tensor], *rows: Tensor) -> Tensor:
        """function(*rows), float32 on the CPU, without gradient: what a probe does.

        It runs as a forward pass of the whole objective, because that is where a sharded one gathers its parameters.
        """
        device, was = next(self.parameters()).device, self.training
        self.eval()
        self.forward = function  # type: ignore[method-assign]
        try:
            with torch.no_grad():
                return self(*(r.to(device) for r in rows)).float().cpu()
        finally:
            del self.forward
            self.train(was)

    def after_step(self) -> None:
        """What is clamped after a step that counted."""

    def follow(self, step: int) -> dict[str, Tensor]:
        """What else moves after a step that counted (a centre); what to log of it, the same on every rank."""
        return {}
