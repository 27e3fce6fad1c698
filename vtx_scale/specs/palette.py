"""Palettes of iGPT: colours of 8 bits as a recipe names them, and as a file holds them.

Standard library only.
"""

import json
from pathlib import Path

from vtx_scale.data_pipeline.errors import UserError

CUBE = 8  # levels of a channel of the palette "cube"
KEY = "clusters"  # as transformers names it in preprocessor_config.json


def colours_of(palette: str) -> list[tuple[int, int, int]]:
    """What a recipe's `palette` names: "cube", or colours of six hexadecimal digits each.

    Raises UserError.
    """
    if palette == "cube":
        level = [256 // CUBE * i + 128 // CUBE for i in range(CUBE)]
        return [(r, g, b) for r in level for g in level for b in level]
    try:
        body = bytes.fromhex(palette)
    except ValueError:
        body = b""
    if not body or len(body) % 3:
        raise UserError(
            f"objective.palette={palette[:40]} is neither cube nor a palette's file: make one with "
            "'vtx data palette'."
        )
    return [(body[i], body[i + 1], body[i + 2]) for i in range(0, len(body), 3)]


def count_colours(palette: str) -> int | None:
    """How many colours a recipe's `palette` has; None where it names a file that is still to be
    read, or nothing yet.
    """
    if palette == "cube":
        return CUBE**3
    try:
        return len(bytes.fromhex(palette)) // 3
    except ValueError:
        return None


def read_palette(path: Path) -> str:
    """A JSON file whose "clusters" are K colours of numbers in [-1, 1] -> 6 K hexadecimal digits.

    Raises UserError.
    """
    try:
        rows = json.loads(path.read_text())[KEY]
        body = bytes(round(127.5 * (float(c) + 1)) for row in rows for c in row)
        if not body or any(len(row) != 3 for row in rows):
            raise ValueError
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(
            f"objective.palette={path} is no palette ({KEY}: rows of three numbers from -1 to 1): "
            "make one with 'vtx data palette'."
        ) from None
    return body.hex()


def clusters(colours: list[tuple[int, int, int]]) -> list[list[float]]:
    """Numbers in [-1, 1], as they stand in a palette's file."""
    return [[c / 127.5 - 1 for c in row] for row in colours]


def write_palette(colours: list[tuple[int, int, int]]) -> str:
    """The file's text."""
    return json.dumps({KEY: clusters(colours)}) + "\n"
