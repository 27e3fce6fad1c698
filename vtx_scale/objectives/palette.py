"""Pictures as colours of a palette, a token a pixel (Chen et al. 2020, section 2):
nearest by squared distance.

Between colours of 8 bits distances are whole numbers that float32 holds exactly; to a palette of
numbers, such as the released one, they are taken in float64, of pixels that are brought to [-1, 1]
in float32, as transformers' image processor does both. So a token is the same on every device and
in every batch, and where two colours are equally near it is the first.
"""

import torch
from torch import Tensor

from vtx_scale.blocks.autocast import no_autocast
from vtx_scale.specs.palette import centres_of, colours_of

ROWS = 1 << 13  # pixels that are compared with all colours at once


class Palette:
    """K colours. They are no buffer: the recipe says them.

    Raises UserError for a name that is no palette.
    """

    def __init__(self, palette: str) -> None:
        self.colours = colours_of(palette)
        self.centres = centres_of(palette)
        self.on: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def table(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """(K, 3): uint8, the colours that are shown; else what pixels are compared with."""
        key = (device, dtype)
        if key not in self.on:
            rows = self.colours if self.centres is None or dtype == torch.uint8 else self.centres
            self.on[key] = torch.tensor(rows, dtype=dtype, device=device)
        return self.on[key]

    def tokens(self, pixels: Tensor) -> Tensor:
        """uint8 (B, S, S, 3) -> int64 (B, S S); of colours that are equally near the first."""
        far = self.far_whole if self.centres is None else self.far
        with no_autocast(pixels.device):
            parts = [far(x).argmin(1) for x in torch.split(pixels.reshape(-1, 3), ROWS)]
        return torch.cat(parts).view(len(pixels), -1)

    def far_whole(self, pixels: Tensor) -> Tensor:
        """uint8 (n, 3) -> (n, K): the squared distances to colours of 8 bits, but for what all
        colours share.
        """
        table = self.table(pixels.device, torch.float32)
        return table.square().sum(1) - 2 * (pixels.float() @ table.T)

    def far(self, pixels: Tensor) -> Tensor:
        """The same to a palette of numbers. No matrix product: its columns are not all added up in
        one order, so that of two equal colours the second could be nearer by a last digit.
        """
        table = self.table(pixels.device, torch.float64).T.contiguous()
        share = (pixels.double() * (1 / 255)).float()
        x = ((share - 0.5) / 0.5).double()
        products = [x[:, c : c + 1] * table[c] for c in range(3)]
        squares = [table[c] * table[c] for c in range(3)]
        return squares[0] + squares[1] + squares[2] - 2 * (products[0] + products[1] + products[2])

    def pixels(self, tokens: Tensor) -> Tensor:
        """int64 (B, S S) -> uint8 (B, S, S, 3)."""
        side = int(tokens.shape[1] ** 0.5)
        return torch.unflatten(self.table(tokens.device, torch.uint8)[tokens], 1, (side, side))
