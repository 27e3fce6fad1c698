"""Pixels as networks want them."""

import torch
from torch import Tensor

# mean and deviation of each channel, of values in [0, 1]
STATISTICS = {
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}


def normalised(pixels: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
    """(B, S, S, 3) of 0..255, uint8 or mixed float -> (B, 3, S, S)."""
    wide = torch.promote_types(dtype, torch.float32)
    mean, std = (torch.tensor(x, device=pixels.device, dtype=wide) * 255 for x in STATISTICS[kind])
    return ((pixels.to(wide) - mean) / std).permute(0, 3, 1, 2).to(dtype)
