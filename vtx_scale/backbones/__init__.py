"""Networks that turn images or tokens into features, a file each."""

from collections.abc import Callable, Iterable
from typing import Protocol, Self

from torch import Tensor, nn

from vtx_scale.blocks.rules import Rules
from vtx_scale.blocks.slots import SlotContext
from vtx_scale.specs.imports import import_object
from vtx_scale.specs.network import Backbone, Network

__all__ = ["build_network"]


class ImageNetwork(Protocol):
    """The module of a `vtx_scale.specs.network.Backbone`, which says its shapes."""

    parameter_rules: Rules

    @property
    def spec(self) -> Backbone:
        """What it was built from."""

    def __call__(self, x: Tensor, slots: SlotContext | None = None) -> Tensor:
        """(B, *input) -> (B, width), or (B, classes); with slots it trains."""

    def features(self, x: Tensor, slots: SlotContext | None = None) -> Tensor:
        """(B, *input) -> (B, width)."""

    def pyramid(self, x: Tensor, slots: SlotContext | None = None) -> list[Tensor]:
        """Maps (B, widths[k], H / strides[k], W / strides[k])."""

    def units(self) -> Iterable[nn.Module]:
        """Blocks that are sharded, compiled and recomputed as one."""

    def layer(self, name: str) -> int:
        """How deep a parameter lies."""

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """As torch has it."""


class AttendingNetwork(ImageNetwork, Protocol):
    """The module of a `Backbone` that `attends`."""

    extra: int  # tokens before the patches

    @property
    def norm(self) -> Callable[[Tensor], Tensor]:
        """The final norm."""

    def tokens(self, x: Tensor, slots: SlotContext | None = None, *, keep: int = 1) -> list[Tensor]:
        """What the last `keep` blocks give, (B, N, width) each, before the final norm."""

    def attention(self, x: Tensor) -> Tensor:
        """(B, heads, grid, grid): how much the class token looks at each patch."""


def build_network(spec: Network) -> ImageNetwork:
    """The module that a spec names, with what `vtx_scale.specs.network.Backbone` says of it.

    It lies where torch's default device is, with torch's default values or none: `parameter_rules`
    says where it starts. Raises UserError where it cannot be imported.
    """
    network: ImageNetwork = import_object(type(spec).build)(spec)
    return network
