"""Pixels as networks want them."""

import torch
from torch import Tensor

from vtx_scale.specs.pixels import STATISTICS as STATISTICS


def normalised(pixels: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
    """(B, S, S, 3) of 0..255, uint8 or mixed float -> (B, 3, S, S)."""
    wide = torch.promote_types(dtype, torch.float32)
    mean, std = (torch.tensor(x, device=pixels.device, dtype=wide) * 255 for x in STATISTICS[kind])
    return ((pixels.to(wide) - mean) / std).permute(0, 3, 1, 2).to(dtype)
