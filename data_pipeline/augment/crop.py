"""Crops as boxes (top, left, height, width)."""

import math

import numpy as np
from numpy.typing import NDArray

from vtx_scale.data_pipeline.decode import Box, Pixels

TRIES = 5
CROP_WORDS = 4 * TRIES  # uniform numbers a random resized crop takes, whatever comes of them


def random_resized_crop_box(
    height: int,
    width: int,
    u: NDArray[np.float64],
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Box:
    """RandomResizedCrop (Szegedy et al. 2015): area and log aspect uniform;
    after 5 tries the centre, nearest in ratio.

    u: CROP_WORDS uniform numbers in [0, 1).
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for i in range(TRIES):
        a, b, c, d = u[4 * i : 4 * i + 4].tolist()  # numpy's own scalars are slow
        area = height * width * (scale[0] + a * (scale[1] - scale[0]))
        aspect = math.exp(low + b * (high - low))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(c * (height - h + 1)), int(d * (width - w + 1)), h, w
    now = width / height
    if now < ratio[0]:
        w, h = width, round(width / ratio[0])
    elif now > ratio[1]:
        w, h = round(height * ratio[1]), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


def zoomed_box(
    height: int,
    width: int,
    u: NDArray[np.float64],
    zoom: tuple[float, float],
    spread: float | None,
    size: int,
) -> Box:
    """A square whose side goes into the short side between zoom[0] and zoom[1] times, uniformly;
    never below `size` pixels unless the picture is: nothing is enlarged that need not be.

    spread None: anywhere in the picture, as a crop after resizing the short side. Else (Ramesh
    et al. 2021, A.3, B.3): first a square of the short side, from the middle +- spread / 2 of what
    is left over, then anywhere in it. u: 4 numbers.
    """
    short = min(height, width)
    low, high = (max(1.0, min(z, short / size)) for z in zoom)
    side = max(1, min(short, round(short / (low + u[0] * (high - low)))))
    top, left = 0, 0
    if spread is not None:
        at = 0.5 + spread * (u[1] - 0.5)
        top, left = round(at * (height - short)), round(at * (width - short))
        height = width = short
    return top + int(u[2] * (height - side + 1)), left + int(u[3] * (width - side + 1)), side, side


def padded_crop(pixels: Pixels, u: NDArray[np.float64], pad: int) -> Pixels:
    """(H, W, 3) -> the same size, cut out anywhere of the picture with `pad` pixels of its mirror
    image on every side, as small pictures are commonly augmented. u: 2 numbers.
    """
    height, width = pixels.shape[:2]
    wide = np.pad(pixels, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
    top, left = int(u[0] * (2 * pad + 1)), int(u[1] * (2 * pad + 1))
    return np.ascontiguousarray(wide[top : top + height, left : left + width])


def centre_box(height: int, width: int) -> Box:
    """The largest centred square: resizing it equals resizing the short side and
    cropping the centre.
    """
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side
