"""Palettes of iGPT: colours as a recipe names them, and as a file holds them.

A recipe holds colours of 8 bits, as `vtx data palette` finds them, in six hexadecimal digits each;
those of any other file, such as the released one, as the numbers that stand in it: to round them
would give some pixels another colour. Standard library only.
"""

import json
import struct
from pathlib import Path

from vtx_scale.data_pipeline.errors import UserError

CUBE = 8  # levels of a channel of the palette "cube"
KEY = "clusters"  # as transformers names it in preprocessor_config.json
NUMBERS = "float64:"  # before numbers of 16 hexadecimal digits, the highest byte first

Colour = tuple[int, int, int]
Centre = tuple[float, float, float]


def colours_of(palette: str) -> list[Colour]:
    """The 8-bit colours that a recipe's `palette` is shown in: numbers are rounded as iGPT's
    authors decode them.

    palette: "cube", or what `read_palette` gives. Raises UserError.
    """
    if palette == "cube":
        level = [256 // CUBE * i + 128 // CUBE for i in range(CUBE)]
        return [(r, g, b) for r in level for g in level for b in level]
    centres = centres_of(palette)
    body = hexadecimal(palette) if centres is None else eight_bits(centres)
    if not body or len(body) % 3:
        raise UserError(
            f"objective.palette={palette[:40]} is neither cube nor a palette's file: make one with "
            "'vtx data palette'."
        )
    return [(body[i], body[i + 1], body[i + 2]) for i in range(0, len(body), 3)]


def centres_of(palette: str) -> list[Centre] | None:
    """The numbers in [-1, 1] that pixels are compared with; None of a palette of 8 bits.

    Raises UserError where they are cut off.
    """
    if not palette.startswith(NUMBERS):
        return None
    body = hexadecimal(palette.removeprefix(NUMBERS))
    if not body or len(body) % 24:
        raise UserError(f"objective.palette={palette[:40]} is cut off: give the palette's file.")
    return list(struct.iter_unpack(">3d", body))


def hexadecimal(digits: str) -> bytes:
    """The bytes; none of what is no hexadecimal number."""
    try:
        return bytes.fromhex(digits)
    except ValueError:
        return b""


def count_colours(palette: str) -> int | None:
    """How many colours a recipe's `palette` has; None where it names a file that is still to be
    read, or nothing yet.
    """
    if palette == "cube":
        return CUBE**3
    bare = palette.removeprefix(NUMBERS)
    body = hexadecimal(bare)
    if bare and not body:
        return None
    return len(body) // (3 if bare == palette else 24)


def read_palette(path: Path) -> str:
    """A JSON file whose "clusters" are K colours of numbers in [-1, 1], as a recipe holds them.

    Raises UserError.
    """
    try:
        rows = [tuple(float(c) for c in row) for row in json.loads(path.read_text())[KEY]]
        centres = [(r, g, b) for r, g, b in rows]
        body = eight_bits(centres)
        if not body:
            raise ValueError
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        raise UserError(
            f"objective.palette={path} is no palette ({KEY}: rows of three numbers from -1 to 1): "
            "make one with 'vtx data palette'."
        ) from None
    if centres == clusters(body.hex()):
        return body.hex()
    return NUMBERS + b"".join(struct.pack(">3d", *centre) for centre in centres).hex()


def eight_bits(centres: list[Centre]) -> bytes:
    """Three bytes a colour. Raises ValueError for a number beyond -1 or 1."""
    return bytes(round(127.5 * (c + 1)) for centre in centres for c in centre)


def clusters(palette: str) -> list[Centre]:
    """Numbers in [-1, 1], as they stand in a palette's file: of `read_palette` the same again.

    Raises UserError for what is no palette.
    """
    scaled = [(r / 127.5 - 1, g / 127.5 - 1, b / 127.5 - 1) for r, g, b in colours_of(palette)]
    return centres_of(palette) or scaled


def write_palette(colours: list[Colour]) -> str:
    """The text of a file of 8-bit colours."""
    return json.dumps({KEY: clusters(bytes(c for row in colours for c in row).hex())}) + "\n"
