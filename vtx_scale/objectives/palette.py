"""Pictures as colours of a palette, a token a pixel (Chen et al. 2020, section 2):
nearest by squared distance.

Colours are of 8 bits, so that distances are whole numbers that float32 holds exactly: a token is
the same on every device and in every batch. A palette of numbers in [-1, 1], such as the released
one, is rounded as its authors decode it.
"""

import torch
from torch import Tensor

from vtx_scale.specs.palette import colours_of

ROWS = 1 << 14  # pixels that are compared with all colours at once


class Palette:
    """K colours. They are no buffer: the recipe says them."""

    def __init__(self, palette: str) -> None:
        self.colours = colours_of(palette)
        self.on: dict[torch.device, Tensor] = {}

    def table(self, device: torch.device) -> Tensor:
        """(K, 3) uint8."""
        if device not in self.on:
            self.on[device] = torch.tensor(self.colours, dtype=torch.uint8, device=device)
        return self.on[device]

    def tokens(self, pixels: Tensor) -> Tensor:
        """uint8 (B, S, S, 3) -> int64 (B, S S); of colours that are equally near the first."""
        table = self.table(pixels.device).float()
        with torch.autocast(pixels.device.type, enabled=False):
            parts = [
                (table.square().sum(1) - 2 * (x.float() @ table.T)).argmin(1)
                for x in torch.split(pixels.reshape(-1, 3), ROWS)
            ]
        return torch.cat(parts).view(len(pixels), -1)

    def pixels(self, tokens: Tensor) -> Tensor:
        """int64 (B, S S) -> uint8 (B, S, S, 3)."""
        side = int(tokens.shape[1] ** 0.5)
        return torch.unflatten(self.table(tokens.device)[tokens], 1, (side, side))
