"""Turning, sliding and mirroring of (H, W, 3) uint8 pixels;
what comes in from outside has the colour `fill`.

Equal to Pillow's affine transforms within one level. A slide along one axis, by bicubic, needs four
taps where Pillow takes sixteen.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vtx_scale.data_pipeline.augment.colour import clamp, interleaved, planes
from vtx_scale.data_pipeline.decode import Pixels

Colour = tuple[int, int, int]


def flip(pixels: Pixels) -> Pixels:
    """Left and right exchanged."""
    return torch.from_numpy(planes(pixels)).flip(2).permute(1, 2, 0).numpy()


def rotate(pixels: Pixels, degrees: float, fill: Colour, bicubic: bool) -> Pixels:
    """Counter-clockwise about the centre."""
    way = Image.Resampling.BICUBIC if bicubic else Image.Resampling.NEAREST
    return np.array(Image.fromarray(interleaved(pixels)).rotate(degrees, way, fillcolor=fill))


def shear_x(pixels: Pixels, factor: float, fill: Colour, bicubic: bool) -> Pixels:
    """Each pixel comes from `factor` times the height of its centre further right."""
    if bicubic:
        return slide(pixels, factor * (np.arange(len(pixels)) + 0.5), fill)
    return nearest(pixels, (1, factor, 0, 0, 1, 0), fill)


def shear_y(pixels: Pixels, factor: float, fill: Colour, bicubic: bool) -> Pixels:
    """Each pixel comes from `factor` times the column of its centre further down."""
    return shear_x(pixels.transpose(1, 0, 2), factor, fill, bicubic).transpose(1, 0, 2)


def translate_x(pixels: Pixels, distance: float, fill: Colour, bicubic: bool) -> Pixels:
    """Each pixel comes from `distance` pixels further right."""
    if bicubic:
        return slide(pixels, np.full(len(pixels), distance), fill)
    return nearest(pixels, (1, 0, distance, 0, 1, 0), fill)


def translate_y(pixels: Pixels, distance: float, fill: Colour, bicubic: bool) -> Pixels:
    """Each pixel comes from `distance` pixels further down."""
    return translate_x(pixels.transpose(1, 0, 2), distance, fill, bicubic).transpose(1, 0, 2)


def nearest(pixels: Pixels, matrix: tuple[float, ...], fill: Colour) -> Pixels:
    """Without interpolation Pillow is quick."""
    image = Image.fromarray(interleaved(pixels))
    return np.array(image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=fill))


def slide(pixels: Pixels, shift: NDArray[np.floating[Any]], fill: Colour) -> Pixels:
    """Row y at column x is row y at x + shift[y], by bicubic interpolation. shift: (H,) pixels."""
    x = planes(pixels)
    _, height, width = x.shape
    whole = np.floor(shift).astype(np.int32)
    column = np.arange(-1, width + 2, dtype=np.int32) + whole[:, None]
    np.clip(column, 0, width - 1, out=column)
    column += width * np.arange(height, dtype=np.int32)[:, None]
    weights = cubic((shift - whole).astype(np.float32))[..., None]
    outside = np.arange(width) + 0.5 + shift[:, None]
    outside = (outside < 0) | (outside >= width)
    moved = np.empty_like(x)
    for plane, out, colour in zip(x, moved, fill, strict=True):
        near = plane.ravel().take(column).astype(np.float32)
        total = near[:, :width] * weights[0]
        for tap in (1, 2, 3):
            total += near[:, tap : tap + width] * weights[tap]
        out[:] = clamp(total)
        out[outside] = colour
    return moved.transpose(1, 2, 0)


def cubic(d: NDArray[np.float32]) -> NDArray[np.float32]:
    """(4, n): Keys' weights with a = -1, as Pillow's transforms have it (its resize has -0.5),
    of taps -1, 0, 1, 2.
    """
    square = d * d
    cube = square * d
    return np.stack(
        [2 * square - d - cube, 1 - 2 * square + cube, d + square - cube, cube - square]
    )
