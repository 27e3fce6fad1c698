"""DINO's views of one picture (Caron et al. 2021): two large crops and some small ones,
from one decode.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vtx_scale.data_pipeline.augment.affine import flip
from vtx_scale.data_pipeline.augment.colour import JITTER_WORDS, blur, grey, jitter, solarise
from vtx_scale.data_pipeline.augment.crop import CROP_WORDS, random_resized_crop_box
from vtx_scale.data_pipeline.crops import Crop
from vtx_scale.data_pipeline.decode import Box, Pixels, resize_crop

VIEW_WORDS = CROP_WORDS + JITTER_WORDS + 6  # of each view, whatever comes of them


@dataclass(frozen=True)
class MultiCrop:
    """Views 0 and 1 are the large crops, view 2 + i is small crop i; each has numbers of its own.

    scale: part of the picture's area. jitter: strengths of brightness, contrast, saturation, hue.
    blur: probability in the first large, the second large and the small crops; blur_radius in
    pixels. solarise: of the second alone. Departs from the paper's code in the crop's number of
    tries (5, not 10) and in turning the hue in float.
    """

    global_size: int = 224
    local_size: int = 96
    locals: int = 8
    global_scale: tuple[float, float] = (0.4, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.4)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    jitter_p: float = 0.8
    grey: float = 0.2
    blur: tuple[float, float, float] = (1.0, 0.1, 0.5)
    blur_radius: tuple[float, float] = (0.1, 2.0)
    solarise: float = 0.2

    def __call__(
        self, pixels: Pixels, draw: Callable[[int, int], NDArray[np.float64]]
    ) -> tuple[Pixels, Pixels]:
        """(2, S, S, 3) and (locals, s, s, 3) uint8 of an (H, W, 3) picture; both lie in planes."""
        drawn = self.drawn(draw)
        height, width = pixels.shape[:2]
        boxes = [crop.box for crop in self.boxes(height, width, drawn)]
        return self.made(pixels, boxes, drawn)

    def drawn(self, draw: Callable[[int, int], NDArray[np.float64]]) -> list[NDArray[np.float64]]:
        """VIEW_WORDS uniform numbers for each view."""
        return [draw(view, VIEW_WORDS) for view in range(2 + self.locals)]

    def boxes(self, height: int, width: int, drawn: list[NDArray[np.float64]]) -> list[Crop]:
        """What each view shows of a picture of this size."""
        sizes = [self.global_size] * 2 + [self.local_size] * self.locals
        scales = [self.global_scale] * 2 + [self.local_scale] * self.locals
        return [
            Crop(random_resized_crop_box(height, width, u, scale, self.ratio), size)
            for u, scale, size in zip(drawn, scales, sizes, strict=True)
        ]

    def made(
        self, pixels: Pixels, boxes: list[Box], drawn: list[NDArray[np.float64]]
    ) -> tuple[Pixels, Pixels]:
        """The views of these boxes of an (H, W, 3) picture, as calling it gives them."""
        large = np.empty((2, 3, self.global_size, self.global_size), np.uint8)
        small = np.empty((self.locals, 3, self.local_size, self.local_size), np.uint8)
        for view in range(2 + self.locals):
            out = large[view] if view < 2 else small[view - 2]
            out[:] = self.view(pixels, boxes[view], view, drawn[view]).transpose(2, 0, 1)
        return large.transpose(0, 2, 3, 1), small.transpose(0, 2, 3, 1)

    def view(self, pixels: Pixels, box: Box, view: int, u: NDArray[np.float64]) -> Pixels:
        """One view, (S, S, 3) or (s, s, 3), of a box. u: VIEW_WORDS uniform numbers."""
        size = self.global_size if view < 2 else self.local_size
        picture = resize_crop(pixels, box, size, bicubic=True)
        flips, jitters, greys, blurs, radius, solarises = u[CROP_WORDS : CROP_WORDS + 6].tolist()
        if flips < self.flip:
            picture = flip(picture)
        if jitters < self.jitter_p:
            picture = jitter(picture, u[CROP_WORDS + 6 :], *self.jitter)
        if greys < self.grey:
            picture = grey(picture)
        if blurs < self.blur[min(view, 2)]:
            low, high = self.blur_radius
            picture = blur(picture, low + radius * (high - low))
        if view == 1 and solarises < self.solarise:
            picture = solarise(picture)
        return picture
