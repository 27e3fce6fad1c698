"""Where a rank's part of a tensor lies in the whole:
boxes, local views, and slices of the state.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

Box = tuple[tuple[int, int], ...]  # (start, stop) in every dimension


def box_of(tensor: Tensor) -> Box:
    """(start, stop) in every dimension of what this rank holds of a tensor."""
    if not isinstance(tensor, DTensor):
        return tuple((0, n) for n in tensor.shape)
    shape, offset = compute_local_shape_and_global_offset(
        tensor.shape, tensor.device_mesh, tensor.placements
    )
    return tuple((o, o + n) for o, n in zip(offset, shape, strict=True))


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that lies on this rank, as a view."""
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


@dataclass(frozen=True)
class Slice:
    """A part of one tensor of the state: read when saving, written when loading.

    `tensor` is a view.
    """

    # param/NAME, buffer/NAME, and what the optimizer keeps: exp_avg/NAME, exp_avg_sq/NAME ...
    key: str
    shape: tuple[int, ...]
    box: Box
    tensor: Tensor
    replicas: int = 1
    replica: int = 0
