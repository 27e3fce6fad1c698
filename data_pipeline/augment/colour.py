"""Colour and sharpness of (H, W, 3) uint8 pixels: pure functions of explicit parameters,
and these from uniform numbers.

Each equals Pillow's operation of that name within one level, and torchvision's where the two agree.
Only the hue is turned as torchvision turns it, in float, since Pillow's runs through 256 steps of
hue. Work is done in planes (3, H, W), where NumPy is quickest, and results lie in planes: a picture
that came out of a resize does so already.
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from vtx_scale.data_pipeline.decode import Pixels

Floats = NDArray[np.float32]
ONE = 1 << 24  # a weight of 1 in a blur
JITTER_WORDS = 8  # uniform numbers: four for the order, four for the factors


def planes(pixels: Pixels) -> Pixels:
    """(3, H, W) in one piece; a view where the pixels lie in planes already."""
    planar = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    # a mirrored picture one pixel wide is in one piece too
    return planar if min(planar.strides) >= 0 else planar.copy()


def interleaved(pixels: Pixels) -> Pixels:
    """(H, W, 3) in one piece, for Pillow."""
    if pixels.flags.c_contiguous:
        return pixels
    image = np.empty(pixels.shape, np.uint8)
    for i in range(3):  # four times as fast as copying pixel by pixel
        image[..., i] = pixels[..., i]
    return image


def begin(pixels: Pixels) -> Floats:
    """Whole numbers 0..255 as (3, H, W) float32, to be worked on in place."""
    return planes(pixels).astype(np.float32)


def end(x: Floats) -> Pixels:
    """Back to (H, W, 3) uint8, towards zero as Pillow does."""
    return x.astype(np.uint8).transpose(1, 2, 0)


def clamp(x: Floats) -> Floats:
    torch.from_numpy(x).clamp_(0, 255)  # twice as fast as np.clip
    return x


def luma(x: Floats) -> Floats:
    """(H, W), ITU-R 601 as Pillow rounds it.

    Sixteen-bit weights of whole numbers are exact in float32.
    """
    grey: Floats = x[0] * np.float32(19595 / 65536)
    grey += x[1] * np.float32(38470 / 65536)
    grey += x[2] * np.float32(7471 / 65536)
    grey += 0.5
    np.floor(grey, out=grey)
    return grey


def scale_brightness(x: Floats, factor: float) -> Floats:
    x *= factor
    return clamp(x)


def scale_contrast(x: Floats, factor: float) -> Floats:
    mean = int(luma(x).mean(dtype=np.float64) + 0.5)
    x *= factor
    x += mean * (1 - factor)
    return clamp(x)


def scale_saturation(x: Floats, factor: float) -> Floats:
    grey = luma(x)
    x -= grey
    x *= factor
    x += grey
    return clamp(x)


def turn_hue(x: Floats, turn: float) -> Floats:
    """Hue by sorting the channels instead of by cases,
    then each channel from its distance to the hue, in sixths.
    """
    r, g, b = x
    g_below, high, low = (g < b).astype(np.float32), np.maximum(g, b), np.minimum(g, b)
    r_below, middle = (r < high).astype(np.float32), np.minimum(r, high)
    np.maximum(r, high, out=high)
    h = middle - low
    np.minimum(low, middle, out=low)
    high -= low  # the chroma from here on
    h /= np.maximum(high, 1)
    sector = 12 * r_below
    sector -= 6
    sector *= g_below
    r_below *= 2
    sector -= r_below  # 0, -6, -2 or 4
    h += sector
    np.abs(h, out=h)
    h += 6 * turn
    np.multiply(h, 1 / 6, out=sector)
    np.floor(sector, out=sector)
    sector *= 6
    h -= sector
    x[:] = h
    x -= np.array([3, 2, 4], np.float32)[:, None, None]
    np.abs(x, out=x)
    x[0] -= 1
    np.subtract(2, x[1:], out=x[1:])
    torch.from_numpy(x).clamp_(0, 1)
    x *= high
    x += low
    x += 0.5
    return clamp(x)


CHANGES = (scale_brightness, scale_contrast, scale_saturation, turn_hue)


def brightness(pixels: Pixels, factor: float) -> Pixels:
    """0 is black, 1 changes nothing."""
    return end(scale_brightness(begin(pixels), factor))


def contrast(pixels: Pixels, factor: float) -> Pixels:
    """0 is the mean grey, 1 changes nothing."""
    return end(scale_contrast(begin(pixels), factor))


def saturation(pixels: Pixels, factor: float) -> Pixels:
    """0 is greyscale, 1 changes nothing; Pillow's Color."""
    return end(scale_saturation(begin(pixels), factor))


def hue(pixels: Pixels, turn: float) -> Pixels:
    """turn: part of a whole turn of the hue, -0.5 to 0.5; value and saturation (HSV) stay."""
    return end(turn_hue(begin(pixels), turn))


def sharpness(pixels: Pixels, factor: float) -> Pixels:
    """0 is smoothed by the 3 x 3 kernel (ones around a 5), 1 changes nothing;
    the border pixels stay.
    """
    x = begin(pixels)
    _, height, width = x.shape
    if min(height, width) < 3:
        return end(x)
    for plane in x:
        # neighbours by their distance in memory; what wraps around a row falls on the border
        flat = plane.reshape(-1)
        rows = flat[: -2 * width] + flat[2 * width :]
        rows += flat[width:-width]
        smooth = rows[:-2] + rows[2:]
        smooth += rows[1:-1]
        inner = flat[width + 1 : -width - 1]
        smooth += 4 * inner
        smooth *= 1 / 13
        smooth += 0.5
        np.floor(smooth, out=smooth)
        mixed = inner - smooth
        mixed *= factor
        mixed += smooth
        rows[1:-1] = mixed
        plane[1:-1, 1:-1] = rows.reshape(height - 2, width)[:, 1:-1]
    return end(clamp(x))


def grey(pixels: Pixels) -> Pixels:
    """Luma in all three channels."""
    x = luma(begin(pixels)).astype(np.uint8)
    return np.repeat(x[None], 3, axis=0).transpose(1, 2, 0)


def invert(pixels: Pixels) -> Pixels:
    return ~pixels


def solarise(pixels: Pixels, threshold: int = 128) -> Pixels:
    """Levels from `threshold` (0..256) on are inverted."""
    if threshold > 255:
        return pixels.copy()
    return pixels ^ -(pixels >= threshold).view(np.uint8)  # -1 is 255: all bits of what is above


def solarise_add(pixels: Pixels, amount: int, threshold: int = 128) -> Pixels:
    """Levels below `threshold` gain `amount` (0..255), up to 255."""
    below = -(pixels < threshold).view(np.uint8)
    brighter = pixels + (below & np.uint8(amount))
    brighter |= -(brighter < pixels).view(np.uint8)  # what wrapped around
    return brighter


def posterise(pixels: Pixels, bits: int) -> Pixels:
    """The `bits` (0..8) upper bits of each level."""
    return pixels & np.uint8(256 - (1 << (8 - bits)))


def autocontrast(pixels: Pixels) -> Pixels:
    """Each channel stretched to 0..255; a channel of one level stays."""
    x = planes(pixels)
    low, high = x.min(axis=(1, 2)).astype(np.float32), x.max(axis=(1, 2)).astype(np.float32)
    flat = high <= low
    low[flat], high[flat] = 0, 255
    stretched = x - low[:, None, None]
    stretched *= 255
    stretched /= (high - low)[:, None, None]
    return end(stretched)


def equalise(pixels: Pixels) -> Pixels:
    """Each channel's histogram made even. Pillow's own: NumPy's histograms are no faster."""
    return np.array(ImageOps.equalize(Image.fromarray(interleaved(pixels))))


def blur(pixels: Pixels, radius: float) -> Pixels:
    """Gaussian of standard deviation `radius` pixels as Pillow makes it:
    three extended box filters each way, every one rounded to whole levels (Gwosdek et al. 2011).
    """
    if radius <= 0:
        return pixels.copy()
    variance = radius * radius / 3
    whole = int((math.sqrt(12 * variance + 1) - 1) / 2)
    part = (
        (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    )
    x = boxes(planes(pixels), 2, whole, part)
    return boxes(x, 1, whole, part).astype(np.uint8).transpose(1, 2, 0)


def boxes(
    x: NDArray[np.unsignedinteger[Any]], axis: int, whole: int, part: float
) -> NDArray[np.uint32]:
    """(3, H, W) levels to the same: three boxes of 2 whole + 1 pixels and a part of one more
    at each end.

    Weights are of 24 bits, as Pillow's: ties of the rounding are common, and three roundings
    carry them on.
    """
    n, reach = x.shape[axis], whole + 1
    weight = int(np.float32(ONE) / np.float32(2 * (whole + part) + 1))
    edge = (ONE - (2 * whole + 1) * weight) // 2
    shape = list(x.shape)
    shape[axis] += 2 * reach
    padded = np.empty(shape, np.uint32)
    along = padded.swapaxes(0, axis)
    along[reach : reach + n] = x.swapaxes(0, axis)
    # in one piece: what runs over an end falls on the margins
    step, flat = padded.strides[axis] // 4, padded.reshape(-1)
    near = [flat[step * i : len(flat) - step * (2 * reach - i)] for i in range(2 * reach + 1)]
    blurred, inside = np.empty_like(near[0]), np.empty_like(near[0])
    for _ in range(3):
        # the border pixel goes on for ever
        along[:reach], along[reach + n :] = along[reach], along[reach + n - 1]
        middle = near[1]
        for other in near[2:-1]:
            middle = np.add(middle, other, out=inside)
        np.multiply(middle, weight, out=inside)
        np.add(near[0], near[-1], out=blurred)
        blurred *= edge
        blurred += inside
        blurred += ONE // 2
        np.right_shift(blurred, 24, out=near[reach])
    return along[reach : reach + n].swapaxes(0, axis)


def jitter_factors(
    u: NDArray[np.float64], brightness: float, contrast: float, saturation: float, hue: float
) -> list[tuple[int, float]]:
    """ColorJitter's draw: (number in CHANGES, factor) in the order they are made;
    a strength of 0 leaves its change out.

    u: JITTER_WORDS uniform numbers. Factors are uniform in [max(0, 1 - strength), 1 + strength],
    the hue's in +-hue.
    """
    factors = []
    for i in np.argsort(u[:4], kind="stable").tolist():
        strength = (brightness, contrast, saturation, hue)[i]
        low, high = (-hue, hue) if i == 3 else (max(0.0, 1 - strength), 1 + strength)
        if strength:
            factors.append((i, low + float(u[4 + i]) * (high - low)))
    return factors


def jitter(
    pixels: Pixels,
    u: NDArray[np.float64],
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
) -> Pixels:
    """Brightness, contrast, saturation and hue in random order (torchvision's ColorJitter).

    u: JITTER_WORDS numbers.
    """
    x = begin(pixels)
    for i, factor in jitter_factors(u, brightness, contrast, saturation, hue):
        # levels between the changes, as when each is made by itself
        np.floor(CHANGES[i](x, factor), out=x)
    return end(x)
