"""Where a rank's part of a tensor lies in the whole:
boxes, leaves of the parameters, and slices of the state.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

Shape = tuple[int, ...]
Box = tuple[tuple[int, int], ...]  # (start, stop) in every dimension
Cuts = tuple[tuple[int, dist.ProcessGroup], ...]


class Treatment(Protocol):
    """What a leaf knows of its parameter's line in the table (`vtx_scale.blocks.rules.Rule`)."""

    @property
    def lr_scale(self) -> float:
        """Of its learning rate."""

    @property
    def frozen_until(self) -> int:
        """The step before which it rests."""

    @property
    def group(self) -> Literal["", "head", "trunk"]:
        """The part of the network that it belongs to."""

    @property
    def limits(self) -> tuple[float, float] | None:
        """Where its values are clamped to after each step."""

    def decays(self, ndim: int) -> bool:
        """Whether a parameter of so many dimensions is decayed."""

    def orthogonal(self, name: str, ndim: int) -> bool:
        """Whether a parameter is a hidden layer's matrix, which Muon orthogonalises."""


@dataclass(frozen=True)
class Place:
    """Where a plain local tensor lies in a whole one.

    shape: of the whole. boxes: what lies here; the tensor's elements in C order are those of one
    box after another, and where there is no box it is empty. A box may be empty too: it still says
    the other dimensions, as of a mean over the rows. copies, copy: how many ranks hold the
    same, and which of them this is.
    """

    shape: Shape
    boxes: tuple[Box, ...]
    copies: int = 1
    copy: int = 0


@dataclass(frozen=True, eq=False)
class Leaf:
    """A rank's own part of one parameter: what the optimizer, norms and checkpoints see.

    shape: of the whole parameter. rule: how it is trained. boxes, copies, copy: where the part
    lies, as in `Place`. tensor: a plain local tensor, never a DTensor; it requires a gradient where
    the parameter is trained, and has it when the last micro-batch of a step leaves
    `Strategy.micro`. cuts: (dimension, process group) for each group of ranks over which blocks of
    that dimension are spread; None where the part is no block of rows or columns.
    """

    name: str
    shape: Shape
    rule: Treatment
    boxes: tuple[Box, ...]
    tensor: Tensor
    copies: int = 1
    copy: int = 0
    cuts: Cuts | None = ()

    @property
    def place(self) -> Place:
        """Where the part lies."""
        return Place(self.shape, self.boxes, self.copies, self.copy)

    @property
    def trained(self) -> bool:
        """Whether the optimizer moves it: else it is frozen or follows."""
        return self.tensor.requires_grad

    @property
    def grad(self) -> Tensor | None:
        """The summed gradient of this part."""
        return self.tensor.grad


@dataclass(frozen=True)
class Slice:
    """A part of one tensor of the state: read when saving, written when loading.

    `tensor` is a view.
    """

    # param/NAME, buffer/NAME, and what the optimizer keeps: exp_avg/NAME, exp_avg_sq/NAME ...
    key: str
    shape: Shape
    box: Box
    tensor: Tensor
    replicas: int = 1
    replica: int = 0


def slices_at(key: str, place: Place, tensor: Tensor) -> Iterator[Slice]:
    """A slice a box, views of `tensor`; an empty one where nothing lies here, so that a reader
    knows every key on every rank.
    """
    if not place.boxes:
        nothing = tuple((0, 0) for _ in place.shape)
        tensor = tensor.reshape(-1)[:0].view([0] * max(len(place.shape), 1))
        yield Slice(key, place.shape, nothing, tensor, place.copies, place.copy)
    at = 0
    for box in place.boxes:
        extents = [b - a for a, b in box]
        size = math.prod(extents)
        one = len(place.boxes) == 1 and tuple(tensor.shape) == tuple(extents)
        view = tensor if one else tensor.view(-1)[at : at + size].view(extents)
        yield Slice(key, place.shape, box, view, place.copies, place.copy)
        at += size


def whole_box(shape: Shape) -> Box:
    """All of a tensor."""
    return tuple((0, n) for n in shape)


def box_of(tensor: Tensor) -> Box:
    """(start, stop) in every dimension of what this rank holds of a tensor."""
    if not isinstance(tensor, DTensor):
        return whole_box(tuple(tensor.shape))
    shape, offset = compute_local_shape_and_global_offset(
        tensor.shape, tensor.device_mesh, tensor.placements
    )
    return tuple((o, o + n) for o, n in zip(offset, shape, strict=True))


def boxes_of_flat(shape: Shape, lo: int, hi: int) -> tuple[Box, ...]:
    """The boxes, in C order, of elements lo..hi of a tensor's C order."""
    if hi <= lo:
        return ()
    if len(shape) < 2:
        return (((lo, hi),) if shape else (),)
    row, rest = math.prod(shape[1:]), whole_box(shape[1:])
    boxes: list[Box] = []

    def part(of: int, a: int, b: int) -> None:
        boxes.extend(((of, of + 1), *box) for box in boxes_of_flat(shape[1:], a, b))

    first, last = -(-lo // row), hi // row  # rows first..last are whole
    if first > last:  # within one row
        part(last, lo - last * row, hi - last * row)
        return tuple(boxes)
    if lo % row:
        part(first - 1, lo % row, row)
    if first < last:
        boxes.append(((first, last), *rest))
    if hi % row:
        part(last, 0, hi % row)
    return tuple(boxes)


def rows_of(boxes: tuple[Box, ...], first: int, end: int) -> tuple[Box, ...]:
    """Of boxes that lie one under another, rows first..end of what they make together; a box of no
    rows where there are none.
    """
    found, at = [], 0
    for (a, b), *rest in boxes:
        lo, hi = max(first - at, 0), min(end - at, b - a)
        if lo < hi:
            found.append(((a + lo, a + hi), *rest))
        at += b - a
    return tuple(found) or (((0, 0), *boxes[0][1:]),)


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that lies on this rank, as a view."""
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor
