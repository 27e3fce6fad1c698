"""Strategies as the planner sees them: what each cuts, and over which ranks. Standard library only.

Ranks are numbered with the ranks of tensor parallelism innermost, then those that share a sharded
copy, then the copies.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.specs.run import OFFLOADS, System

Cut = Literal["rows", "flat", "each", "tensors"]  # `vtx_scale.planner.shapes` says what they are
Offload = Literal["none", "optimizer", "all"]


@dataclass(frozen=True)
class Kind:
    """How a strategy cuts weights, gradients and the optimizer's state; None: whole copies.

    masters: the state has copies of the weights, in float32 too, beside those that the forward pass
    reads.
    casts: the strategy itself casts parameters for mixed precision, one unit at a time; else
    autocast does.
    """

    weights: Cut | None = None
    gradients: Cut | None = None
    state: Cut | None = None
    masters: bool = False
    casts: bool = False


KINDS = {
    "single": Kind(),
    "ddp": Kind(),
    "fsdp": Kind("rows", "rows", "rows", casts=True),
    "hsdp": Kind("rows", "rows", "rows", casts=True),
    "tp": Kind(),
    "tp_fsdp": Kind("rows", "rows", "rows", casts=True),
    "zero1": Kind(None, None, "flat", masters=True),
    "zero2": Kind(None, "flat", "flat", masters=True),
    "zero3": Kind("each", "each", "each", masters=True),
    "fairscale": Kind(None, None, "tensors"),
}
STRATEGIES = tuple(KINDS)


@dataclass(frozen=True)
class Layout:
    """A strategy on so many GPUs.

    strategy: as `System.strategy_at` names it. replicas: copies of the sharded model, of hsdp. tp:
    ranks that share each layer.
    """

    strategy: str
    gpus: int
    replicas: int = 1
    tp: int = 1
    offload: Offload = "none"

    def __post_init__(self) -> None:
        """Raises UserError for one that cannot be."""
        if self.strategy not in KINDS:
            raise UserError(
                f"There is no strategy {self.strategy!r}: choose of {', '.join(KINDS)}."
            )
        if self.strategy == "single" and self.gpus > 1:
            raise UserError(f"single runs on one GPU, not on {self.gpus}.")
        if self.gpus % (self.replicas * self.tp):
            raise UserError(
                f"{self.replicas} copies over {self.tp} ranks of tensor parallelism do not divide "
                f"{self.gpus} GPUs."
            )
        takes = ("none", *OFFLOADS.get(self.system_name, ()))
        if self.offload not in takes:
            raise UserError(
                f"{self.strategy} takes system.offload={' or '.join(takes)}, not {self.offload}."
            )

    @property
    def kind(self) -> Kind:
        return KINDS[self.strategy]

    @property
    def data(self) -> int:
        """Ranks that share a batch."""
        return self.gpus // self.tp

    @property
    def ways(self) -> int:
        """Ranks over which what is cut is cut."""
        return self.data // self.replicas

    @property
    def system_name(self) -> str:
        """What `system.strategy` is for it."""
        return "fsdp" if self.strategy == "tp_fsdp" else self.strategy

    @property
    def given(self) -> dict[str, Any]:
        """The fields of `system` that make it, but for the world."""
        given: dict[str, Any] = {"strategy": self.system_name}
        if self.strategy == "hsdp":
            given["replicas"] = self.replicas
        if self.strategy == "tp_fsdp":
            given["tp"] = self.tp
        return given | ({"offload": self.offload} if self.offload != "none" else {})

    def applied(self, system: System) -> System:
        """`system` as it runs so: `layout_of` of it is this layout."""
        return replace(system, **{"offload": "none", "world": self.gpus, **self.given})

    @property
    def sends_copies(self) -> bool:
        """Whether gradients leave in buckets of their own, which stay until all are there."""
        return self.strategy == "ddp" and self.gpus > 1

    def __str__(self) -> str:
        """As people say it: "hsdp 128 x 8", "tp 8 x fsdp 128"."""
        offload = "" if self.offload == "none" else f", offload {self.offload}"
        if self.strategy == "hsdp":
            return f"hsdp {self.replicas} x {self.ways}{offload}"
        if self.strategy == "tp_fsdp":
            return f"tp {self.tp} x fsdp {self.ways}{offload}"
        return self.strategy + offload


def layout_of(system: System, strategy: str, world: int) -> Layout:
    """What a run's `system` means on so many ranks. Raises UserError for one that cannot be."""
    return Layout(
        strategy,
        world,
        replicas=system.replicas if strategy == "hsdp" else 1,
        tp=system.axis(world),
        offload=system.offload,
    )
