"""Crops as boxes (top, left, height, width)."""

import math

import numpy as np
from numpy.typing import NDArray

from data_pipeline.decode import Box

TRIES = 5
CROP_WORDS = 4 * TRIES  # uniform numbers a random resized crop takes, whatever comes of them


def random_resized_crop_box(height: int, width: int, u: NDArray[np.float64], scale: tuple[float, float],
                            ratio: tuple[float, float]) -> Box:
    """RandomResizedCrop (Szegedy et al. 2015): area and log aspect uniform; after 5 tries the centre, nearest in ratio.

    u: CROP_WORDS uniform numbers in [0, 1).
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for i in range(TRIES):
        a, b, c, d = u[4 * i : 4 * i + 4]
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


def centre_box(height: int, width: int) -> Box:
    """The largest centred square: resizing it equals resizing the short side and cropping the centre."""
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side
