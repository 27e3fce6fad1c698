"""What a spec says of a network: what goes in, what comes out, where its weights go.

Standard library only.
"""

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from vtx_scale.specs.spec import Spec

# one input of a sample: its shape without the batch, and what its numbers are
Input = tuple[tuple[int, ...], Literal["pixels", "ids", "flags"]]


@dataclass(frozen=True, kw_only=True)
class Network(Spec):
    """A module that is built from its spec alone: `build` names its class,
    `interop` the module of its name tables.

    An interop module has `export_network(spec, state, to, out, pixels)` and
    `import_network(path, spec)`; see `vtx_scale.interop`. "" for a network that leaves as
    plain safetensors alone.
    """

    interop: ClassVar[str] = ""
    # fields that change nothing of what given weights compute
    training_only: ClassVar[tuple[str, ...]] = ()
    alike: ClassVar[bool] = False  # `depth` blocks that cost alike: two of them tell of all

    if TYPE_CHECKING:

        @property
        def resolution(self) -> int:
            """Pixels of a side of its pictures, of those it makes or of those it
            was published for.
            """

    def inputs(self) -> tuple[Input, ...]:
        """Of one sample, as `forward` takes them."""
        raise NotImplementedError(f"{self.title()}.inputs says what its forward takes")

    @property
    def couples(self) -> bool:
        """Whether it takes batch statistics, so that a batch cannot be cut."""
        return False

    def calm(self) -> Self:
        """The same without what is random in training: weights do not know of it."""
        return self

    def position_grid(self) -> tuple[int, int] | None:
        """(grid, tokens before the patches) of `positions`, learned places of a picture;
        None where there are none.
        """
        return None


@dataclass(frozen=True, kw_only=True)
class Backbone(Network):
    """A network that turns images into features. Its module has

    forward(x, slots=None)   (B, *input) -> (B, width), or (B, classes) where there are classes;
                             with slots it trains
    features(x, slots=None)  (B, *input) -> (B, width): what a classifier sees
    pyramid(x, slots=None)   maps (B, widths[k], H / strides[k], W / strides[k]), the finest first
    units()                  blocks that are sharded, compiled and recomputed as one
    parameter_rules          a table of `vtx_scale.blocks.rules.Rule`
    layer(name)              how deep a parameter lies, 0 for what meets the picture: for a rate
                             that falls with depth

    whose blocks may have cuts(), for tensor parallelism (`vtx_scale.blocks.cuts`); and, where
    `attends`, tokens(x, slots, keep=n), norm, extra and attention(x), as `vtx_scale.backbones.vit`
    has them.
    """

    classes: int = 0  # outputs of a linear classifier; 0 for none
    # which of the image towers it is that CLIP's libraries have
    clip_tower: ClassVar[Literal["", "vit", "resnet"]] = ""
    # its features are an embedding already: no projection comes after it
    projects: ClassVar[bool] = False
    init = "truncated"  # the family of its initial values: "xavier", or N(0, 0.02)
    distilled = False  # whether it gives two answers in training, (2, B, classes): DeiT's

    if TYPE_CHECKING:

        @property
        def width(self) -> int:
            """Of the features."""

        @property
        def depth(self) -> int:
            """Blocks, where it `attends`."""

    @property
    def input(self) -> tuple[int, ...]:
        """The shape of one image."""
        return (3, self.resolution, self.resolution)

    def inputs(self) -> tuple[Input, ...]:
        return ((self.input, "pixels"),)

    @property
    def least(self) -> int:
        """Pixels of a side of the smallest picture that it takes."""
        return 1

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the maps of its pyramid; empty where it has none."""
        return ()

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the maps of its pyramid."""
        return ()

    @property
    def attends(self) -> bool:
        """Whether it has a class token, whose attention can be looked at."""
        return False

    def headless(self) -> Self:
        """The same without a classifier; what stands under the rules' group "head" goes with it."""
        return replace(self, classes=0)


def networks_of(spec: Spec) -> dict[str, Network]:
    """Field -> network, of the fields of a spec that are networks."""
    values = {f.name: getattr(spec, f.name) for f in fields(spec)}
    return {name: value for name, value in values.items() if isinstance(value, Network)}
