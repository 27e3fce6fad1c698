"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019):
what one step does, the same on every rank.

The pixels are mixed on the device.
"""

import hashlib
import math
import struct
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vtx_scale.data_pipeline.decode import Box


@dataclass(frozen=True)
class Mix:
    """weight: the share of a sample's own label.

    box: what CutMix takes from the partner, of no size otherwise.
    """

    kind: Literal["none", "mixup", "cutmix"] = "none"
    weight: float = 1.0
    box: Box = (0, 0, 0, 0)


def mix_parameters(
    seed: int,
    step: int,
    mixup_alpha: float,
    cutmix_alpha: float,
    p: float,
    switch: float,
    size: int,
) -> Mix:
    """The mix of a step's batch of (size, size) pictures, with probability `p`;
    an alpha of 0 turns its kind off.

    Where both are on, CutMix has the probability `switch`. The weight is Beta(alpha, alpha),
    CutMix's one minus the part of the picture that its box, cut at the borders, covers.
    """
    key = np.frombuffer(
        hashlib.sha256(b"vtx-mix-1\0" + struct.pack("<QQ", seed, step)).digest()[:16], "<u8"
    )
    # numpy keeps its numbers from version to version
    random = np.random.RandomState(np.random.Philox(key=key))
    mixes, switches = random.random_sample(2)
    if mixes >= p or not (mixup_alpha or cutmix_alpha):
        return Mix()
    if not cutmix_alpha or (mixup_alpha and switches >= switch):
        return Mix("mixup", float(random.beta(mixup_alpha, mixup_alpha)))
    side = int(size * math.sqrt(1 - random.beta(cutmix_alpha, cutmix_alpha)))
    y, x = (random.random_sample(2) * size).astype(int).tolist()
    top, left = max(0, y - side // 2), max(0, x - side // 2)
    h, w = min(size, y + (side + 1) // 2) - top, min(size, x + (side + 1) // 2) - left
    return Mix("cutmix", 1 - h * w / size**2, (top, left, h, w))
