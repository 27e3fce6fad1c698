"""Random erasing (Zhong et al. 2020): where.

The noise is drawn on the device, after normalisation.
"""

import math

import numpy as np
from numpy.typing import NDArray

from vtx_scale.data_pipeline.decode import Box

TRIES = 10
ERASE_WORDS = 4 * TRIES  # uniform numbers a box takes, whatever comes of them


def erase_box(
    u: NDArray[np.float64],
    size: int,
    area: tuple[float, float] = (0.02, 1 / 3),
    ratio: tuple[float, float] = (0.3, 1 / 0.3),
) -> Box | None:
    """A box smaller than the (size, size) picture both ways, or None where ten tries found none.

    u: ERASE_WORDS uniform numbers. area: part of the picture. ratio: height by width, uniform
    in its logarithm.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for i in range(TRIES):
        a, b, c, d = u[4 * i : 4 * i + 4].tolist()
        pixels = size * size * (area[0] + a * (area[1] - area[0]))
        aspect = math.exp(low + b * (high - low))
        h, w = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 0 < h < size and 0 < w < size:
            return int(c * (size - h + 1)), int(d * (size - w + 1)), h, w
    return None
