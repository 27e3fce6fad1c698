"""Pictures as colours of a palette, a token a pixel (Chen et al. 2020, section 2): nearest by squared distance.

Colours are of 8 bits, so that distances are whole numbers that float32 holds exactly: a token is the same on every device
and in every batch. A palette of numbers in [-1, 1], such as the released one, is rounded as its authors decode it.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.specs.igpt import CUBE

ROWS = 1 << 14  # pixels that are compared with all colours at once
KEY = "clusters"  # as transformers names it in preprocessor_config.json


def colours_of(palette: str) -> list[tuple[int, int, int]]:
    """What a recipe's `palette` names: "cube", or colours of six hexadecimal digits each. Raises UserError."""
    if palette == "cube":
        level = [256 // CUBE * i + 128 // CUBE for i in range(CUBE)]
        return [(r, g, b) for r in level for g in level for b in level]
    try:
        body = bytes.fromhex(palette)
    except ValueError:
        body = b""
    if not body or len(body) % 3:
        raise UserError(f"objective.palette={palette[:40]} is neither cube nor a palette's file: make one with "
                        "'vtx data palette'.")
    return [(body[i], body[i + 1], body[i + 2]) for i in range(0, len(body), 3)]


def read_palette(path: Path) -> str:
    """A JSON file whose "clusters" are K colours of numbers in [-1, 1] -> 6 K hexadecimal digits. Raises UserError."""
    try:
        rows = json.loads(path.read_text())[KEY]
        body = bytes(round(127.5 * (float(c) + 1)) for row in rows for c in row)
        if not body or any(len(row) != 3 for row in rows):
            raise ValueError
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(f"objective.palette={path} is no palette ({KEY}: rows of three numbers from -1 to 1): make one with "
                        "'vtx data palette'.") from None
    return body.hex()


def clusters(colours: list[tuple[int, int, int]]) -> list[list[float]]:
    """Numbers in [-1, 1], as they stand in a palette's file."""
    return [[c / 127.5 - 1 for c in row] for row in colours]


def write_palette(colours: list[tuple[int, int, int]]) -> str:
    """The file's text."""
    return json.dumps({KEY: clusters(colours)}) + "\n"


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
            parts = [(table.square().sum(1) - 2 * (x.float() @ table.T)).argmin(1) for x in pixels.reshape(-1, 3).split(ROWS)]
        return torch.cat(parts).view(len(pixels), -1)

    def pixels(self, tokens: Tensor) -> Tensor:
        """int64 (B, S S) -> uint8 (B, S, S, 3)."""
        side = int(tokens.shape[1] ** 0.5)
        return self.table(tokens.device)[tokens].unflatten(1, (side, side))
