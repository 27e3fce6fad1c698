"""RandAugment (Cubuk et al. 2020) on (H, W, 3) uint8 pixels, in the two forms that recipes use.

Increasing: timm's `rand-m9-mstd0.5-inc1` as DeiT runs it: 15 operations, each made with probability
0.5, all of them stronger with the magnitude, which is held within 0..10; bicubic; translation in
parts of the picture.
Plain: the form of EfficientNet and big_vision, as AugReg runs it: 16 operations with Cutout, always
made, magnitudes beyond 10 as they come; nearest; translation in pixels (at magnitude 10: 100).
Posterising and solarising weaken there as the magnitude grows, and colour, contrast, brightness and
sharpness go from 0.1 to 1.9, so magnitude 0 is no identity.

Departures: the plain form's contrast is Pillow's, about the true mean grey, where the TensorFlow
code took the number of pixels over 256 for it, and its rounding to the nearest pixel is Pillow's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from vtx_scale.data_pipeline.augment import affine, colour
from vtx_scale.data_pipeline.decode import Pixels

LAYER_WORDS = 6  # uniform numbers: which, whether, noise, sign, two of Cutout's centre
TOP = 10.0
OPERATIONS = (
    "autocontrast",
    "equalise",
    "invert",
    "rotate",
    "posterise",
    "solarise",
    "solarise_add",
    "saturation",
    "contrast",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
PLAIN: dict[str, Callable[..., Pixels]] = {
    "autocontrast": colour.autocontrast,
    "equalise": colour.equalise,
    "invert": colour.invert,
    "posterise": colour.posterise,
    "solarise": colour.solarise,
    "solarise_add": colour.solarise_add,
    "saturation": colour.saturation,
    "contrast": colour.contrast,
    "brightness": colour.brightness,
    "sharpness": colour.sharpness,
}
MOVES: dict[str, Callable[..., Pixels]] = {
    "rotate": affine.rotate,
    "shear_x": affine.shear_x,
    "shear_y": affine.shear_y,
    "translate_x": affine.translate_x,
    "translate_y": affine.translate_y,
}


def cutout(pixels: Pixels, reach: int, y: int, x: int, fill: affine.Colour) -> Pixels:
    """The square of 2 reach pixels about (y, x), as far as it lies inside, painted."""
    image = pixels.copy(order="K")
    image[max(0, y - reach) : y + reach, max(0, x - reach) : x + reach] = fill
    return image


@dataclass(frozen=True)
class RandAugment:
    """pixels, u -> pixels. u: `words` uniform numbers in [0, 1), the same count whatever is chosen.

    layers: operations in turn. magnitude: of 10. noise: standard deviation of the magnitude.
    increasing: DeiT's form, else the plain one. fill: the colour of what comes in from outside.
    """

    layers: int = 2
    magnitude: float = 9.0
    noise: float = 0.5
    increasing: bool = True
    fill: affine.Colour = (124, 116, 104)  # ImageNet's mean

    @property
    def words(self) -> int:
        return LAYER_WORDS * self.layers

    @property
    def operations(self) -> tuple[str, ...]:
        return OPERATIONS if self.increasing else (*OPERATIONS, "cutout")

    def __call__(self, pixels: Pixels, u: NDArray[np.float64]) -> Pixels:
        for i in range(self.layers):
            which, whether, noise, sign, y, x = u[LAYER_WORDS * i : LAYER_WORDS * (i + 1)].tolist()
            if self.increasing and whether >= 0.5:
                continue
            name = self.operations[int(which * len(self.operations))]
            level = self.level(noise)
            if name == "cutout":
                h, w = pixels.shape[:2]
                pixels = cutout(pixels, int(40 * level), int(y * h), int(x * w), self.fill)
            else:
                pixels = self.apply(pixels, name, level, 1 if sign < 0.5 else -1)
        return pixels

    def level(self, u: float) -> float:
        """The magnitude over 10, with its noise."""
        magnitude = self.magnitude
        if self.noise:
            magnitude += self.noise * NormalDist().inv_cdf(max(u, 2.0**-54))
        return max(0.0, min(magnitude, TOP) if self.increasing else magnitude) / TOP

    def apply(self, pixels: Pixels, name: str, level: float, sign: int) -> Pixels:
        """One operation by its name."""
        if name in MOVES:
            size = {"translate_x": pixels.shape[1], "translate_y": pixels.shape[0]}
            strength = {"rotate": 30.0, "shear_x": 0.3, "shear_y": 0.3}.get(name)
            if strength is None:
                strength = 0.45 * size[name] if self.increasing else 100.0
            return MOVES[name](pixels, sign * level * strength, self.fill, self.increasing)
        return PLAIN[name](pixels, *self.arguments(name, level, sign))

    def arguments(self, name: str, level: float, sign: int) -> tuple[float, ...]:
        """What an operation that moves nothing is called with."""
        if name == "posterise":
            bits = min(8, int(4 * level))
            return (4 - bits,) if self.increasing else (bits,)
        if name == "solarise":
            threshold = min(256, int(256 * level))
            return (256 - threshold,) if self.increasing else (threshold,)
        if name == "solarise_add":
            return (min(128 if self.increasing else 255, int(110 * level)),)
        if name in ("saturation", "contrast", "brightness", "sharpness"):
            return (max(0.1, 1 + sign * 0.9 * level),) if self.increasing else (0.1 + 1.8 * level,)
        return ()
