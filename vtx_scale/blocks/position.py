"""Where a patch lies: fixed sines and cosines, and learned positions at another resolution."""

import torch
from torch import Tensor


def sincos2d(grid: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """(grid * grid, width) float32 after MoCo v3 (Chen et al. 2021):
    sin x, cos x, sin y, cos y, a quarter each.
    """
    if width % 4:
        raise ValueError(f"sincos2d needs a width that 4 divides, not {width}")
    omega = 10_000 ** -(
        torch.arange(width // 4, device=device, dtype=torch.float64) / (width / 4 - 1)
    )
    at = torch.arange(grid, device=device, dtype=torch.float64)
    y, x = (a.flatten()[:, None] * omega for a in torch.meshgrid(at, at, indexing="ij"))
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1).float()


def cubic(old: int, new: int, scale: float, device: torch.device | str) -> Tensor:
    """(new, old) float64: row i holds the bicubic weights (a = -0.75,
    clamped at the border) of output i.
    """
    at = (torch.arange(new, device=device, dtype=torch.float64) + 0.5) / scale - 0.5
    first = at.floor()
    out = torch.zeros(new, old, dtype=torch.float64, device=device)
    for k in range(-1, 3):
        d = (at - first - k).abs()
        inner, outer = (1.25 * d - 2.25) * d * d + 1, -0.75 * (((d - 5) * d + 8) * d - 4)
        column = (first + k).clamp(0, old - 1).long()
        out.scatter_add_(1, column[:, None], torch.where(d <= 1, inner, outer)[:, None])
    return out


def resampled(positions: Tensor, old: int, new: int) -> Tensor:
    """(1, old * old, C) -> (1, new * new, C), bicubic.

    As DINO's code does: the sampling scale is (new + 0.1) / old, where timm's is new / old. A
    product with a matrix, so that the backward pass is deterministic on every device.
    """
    weights = cubic(old, new, (new + 0.1) / old, positions.device).to(positions.dtype)
    square = positions.view(old, old, -1)
    return torch.einsum("yo,xp,opc->yxc", weights, weights, square).reshape(1, new * new, -1)
