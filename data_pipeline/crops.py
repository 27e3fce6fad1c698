"""Crops of a picture, for which no more of it is decoded than they need.

Of a JPEG under the policy "scaled" every second, fourth or eighth pixel is made, where what is cut
out is that much larger than what comes of it; of one with restart markers, whose places it says
itself (`restarts`), the blocks around the crops. Entropy coding is gone through as a whole in the
first case, so that the verdict on broken data is that of a whole decode; in the second a checksum
of the file stands for it. Whatever is not taken in this way is decoded as a whole.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import simplejpeg

from vtx_scale.data_pipeline import jpeg, restarts
from vtx_scale.data_pipeline.decode import (
    CMYK,
    LIMIT,
    RGB,
    Box,
    Pixels,
    check,
    check_cost,
    decode_image,
    resize_crop,
)
from vtx_scale.data_pipeline.errors import BadSample

DENOMINATORS = (8, 4, 2)  # others have no fast inverse transform: slower than none
Decode = Literal["exact", "scaled"]


class Crop(NamedTuple):
    """A box of a picture, and the side in pixels of the square that is made of it."""

    box: Box
    size: int


Choose = Callable[[int, int], list[Crop]]  # (height, width) -> the crops that are wanted


def decode_crops(body: bytes, choose: Choose, decode: Decode = "exact") -> tuple[Pixels, list[Box]]:
    """(H, W, 3) uint8 of a picture or of a part of it, and where in it the boxes of the crops lie.

    choose: is asked with the picture's height and width, perhaps twice, and gives one crop at
    least. decode: "exact", the pixels of a whole decode; "scaled", the boxes in multiples of the
    denominator, of 1/2, 1/4 or 1/8 the smallest scale that makes no crop smaller than what comes
    of it. Raises what `decode_image` raises, for the same files.
    """
    if body[:2] == b"\xff\xd8" and (decode == "scaled" or restarts.has_table(body)):
        found = of_part(body, choose, decode)
        if found is not None:
            return found
    pixels = decode_image(body)
    return pixels, [crop.box for crop in choose(*pixels.shape[:2])]


def decode_crop(
    body: bytes,
    choose: Callable[[int, int], Box],
    size: int,
    bicubic: bool = False,
    decode: Decode = "exact",
) -> Pixels:
    """(size, size, 3) uint8: one box of a picture, as `decode_crops` gives it, resized."""
    pixels, (box,) = decode_crops(body, lambda h, w: [Crop(choose(h, w), size)], decode)
    return resize_crop(pixels, box, size, bicubic)


def of_part(body: bytes, choose: Choose, decode: Decode) -> tuple[Pixels, list[Box]] | None:
    """As `decode_crops`; None where the picture is to be decoded, or refused, as a whole."""
    frame = jpeg.frame_of(body)
    if frame is None:
        return None
    height, width = frame.height, frame.width
    try:
        check(height, width, LIMIT)
        check_cost(body, frame, RGB if len(frame.sampling) < 4 else CMYK + RGB)
    except BadSample:
        return None
    crops = choose(height, width)
    by = denominator(crops) if decode == "scaled" else 1
    boxes = [on_grid(crop.box, by, height, width) for crop in crops]
    cut = restarts.cut(body, frame, hull(boxes), by)
    if cut is None and by == 1:
        return None
    if cut is not None:
        body, top, left, height, width = cut
        boxes = [(t - top // by, s - left // by, h, w) for t, s, h, w in boxes]
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(body, min_height=-(-height // by))
    except MemoryError:
        raise
    except Exception:  # the whole decode says what is wrong, or mends it
        return None
    return (pixels, boxes) if pixels.shape[:2] == (-(-height // by), -(-width // by)) else None


def denominator(crops: list[Crop]) -> int:
    """The largest that makes no crop smaller than what comes of it; 1 where none does."""
    most = min(min(crop.box[2:]) // crop.size for crop in crops)
    return next((by for by in DENOMINATORS if by <= most), 1)


def on_grid(box: Box, by: int, height: int, width: int) -> Box:
    """The box in pixels of by x by of the picture's: the nearest whole numbers that lie inside."""
    if by == 1:
        return box
    top, left, h, w = box
    rows, columns = height // by, width // by
    h, w = min(round(h / by), rows), min(round(w / by), columns)
    return min(round(top / by), rows - h), min(round(left / by), columns - w), h, w


def hull(boxes: list[Box]) -> Box:
    """The smallest box around some."""
    top, left = min(b[0] for b in boxes), min(b[1] for b in boxes)
    below, right = max(b[0] + b[2] for b in boxes), max(b[1] + b[3] for b in boxes)
    return top, left, below - top, right - left
