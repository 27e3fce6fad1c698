"""Where tensor parallelism cuts a network (Shoeybi et al. 2019, Megatron-LM, arXiv:1909.08053).

A block has a method `cuts()` beside its layers, in torch's words:

    {"attn.qkv": Colwise(parts=3, heads=12), "attn.proj": Rowwise(),
     "mlp.fc1": Colwise(), "mlp.fc2": Rowwise()}

Colwise: a rank computes some of the layer's outputs. Rowwise: it is given these as some of its
inputs, and what comes out is a sum over ranks. Whatever is not named lies whole on every rank. The
module that holds such a layer may have `axis`, the ranks that share it.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol, cast

from torch import nn

from vtx_scale.distributed.sharding import Box


@dataclass(frozen=True)
class Colwise:
    """Outputs are cut: rows of the weight, numbers of the bias.

    parts: so many matrices of one size stand in the weight, row below row (q, k, v), and each is
    cut. heads: a part's rows are cut between its heads alone; None: between any two.
    """

    parts: int = 1
    heads: int | None = None
    dim: ClassVar[int] = 0  # of the weight

    def shared(self, layer: nn.Linear) -> tuple[int, str]:
        """How many of what the ranks share, to be divided by their number."""
        if self.heads is not None:
            return self.heads, "heads"
        return layer.out_features // self.parts, "outputs"

    def boxes(self, shape: tuple[int, ...], index: int, count: int) -> tuple[Box, ...]:
        """Where the `index`-th of `count` equal parts lies in a weight (outputs, inputs) or a bias
        (outputs,): a box for each matrix.
        """
        rows = shape[0] // self.parts
        share, rest = rows // count, tuple((0, n) for n in shape[1:])
        starts = (part * rows + index * share for part in range(self.parts))
        return tuple(((a, a + share), *rest) for a in starts)


@dataclass(frozen=True)
class Rowwise:
    """Inputs are cut: columns of the weight. The bias is whole, and added once."""

    dim: ClassVar[int] = 1  # of the weight

    def shared(self, layer: nn.Linear) -> tuple[int, str]:
        """How many of what the ranks share, to be divided by their number."""
        return layer.in_features, "inputs"

    def boxes(self, shape: tuple[int, ...], index: int, count: int) -> tuple[Box, ...]:
        """Where the `index`-th of `count` equal parts lies in a weight (outputs, inputs)."""
        share = shape[1] // count
        return (((0, shape[0]), (index * share, (index + 1) * share)),)


@dataclass(frozen=True)
class Part:
    """What is left to a rank of a parameter that is cut: its boxes in the whole `shape`, and the
    dimension that is cut.
    """

    shape: tuple[int, ...]
    boxes: tuple[Box, ...]
    dim: int


Cut = Colwise | Rowwise
Cuts = dict[str, Cut]  # name of a linear layer below the block -> how it is cut


class Cuttable(Protocol):
    """A module that tensor parallelism can cut."""

    def cuts(self) -> Cuts:
        """Its linear layers that are cut, by their names in it."""


def cut_layers(module: nn.Module) -> Cuts:
    """The linear layers that are cut in all blocks of `module`, by their names in it."""
    return {
        f"{prefix}.{name}" if prefix else name: cut
        for prefix, block in module.named_modules()
        if hasattr(block, "cuts")
        for name, cut in cast(Cuttable, block).cuts().items()
    }


def cut_fault(module: nn.Module, count: int) -> str | None:
    """Why `count` ranks cannot share the blocks of `module`, in a sentence; None where they can."""
    for name, cut in cut_layers(module).items():
        number, what = cut.shared(cast(nn.Linear, module.get_submodule(name)))
        if number % count:
            return (
                f"system.tp={count} does not divide the {number} {what} of {name}: "
                "choose a system.tp that does, or another strategy."
            )
    return None
