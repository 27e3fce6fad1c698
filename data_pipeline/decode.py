"""Image bytes to pixels, under limits that are checked before anything is allocated.

JPEG by libjpeg-turbo (strict: corrupt entropy data is an error, which Pillow passes over in
silence), the rest by Pillow; resize by torch's antialiased uint8 interpolation, which equals
Pillow's within one level.
"""

import io
import warnings

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image

from vtx_scale.data_pipeline.errors import BadSample, notes

LIMIT = 64_000_000  # pixels
RATIO = 20
Box = tuple[int, int, int, int]  # top, left, height, width
Pixels = NDArray[np.uint8]


def check(height: int, width: int, limit: float = LIMIT) -> None:
    if height * width > limit:
        raise BadSample("image_bomb", f"{width} x {height}")
    if min(height, width) < 2 or max(height, width) > RATIO * min(height, width):
        raise BadSample("image_shape", f"{width} x {height}")


def decode_image(body: bytes, limit_pixels: float = LIMIT) -> Pixels:
    """(H, W, 3) uint8.

    Raises BadSample: empty, image_format, image_bomb, image_shape, jpeg_truncated, jpeg_corrupt.
    """
    if not body:
        raise BadSample("empty")
    if body[:2] == b"\xff\xd8":
        return decode_jpeg(body, limit_pixels)
    if body[:4] not in (b"\x89PNG", b"RIFF", b"GIF8") and body[:2] != b"BM":
        raise BadSample("image_format")
    return decode_other(body, limit_pixels)


def decode_jpeg(body: bytes, limit: float) -> Pixels:
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(body)
        check(height, width, limit)
        pixels: Pixels = simplejpeg.decode_jpeg(body)
        return pixels
    except ValueError as e:
        message = str(e)
        short = "Premature end" in message or (
            "DecompressHeader" in message and body[-2:] != b"\xff\xd9"
        )
        raise BadSample("jpeg_truncated" if short else "jpeg_corrupt", message) from None


def decode_other(body: bytes, limit: float) -> Pixels:
    """PNG, WebP, GIF, BMP: the first frame; alpha and palette on white;
    16-bit grey by its upper byte.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image: Image.Image = Image.open(io.BytesIO(body), formats=("PNG", "WEBP", "GIF", "BMP"))
            check(image.height, image.width, limit)
            if moves(image):
                notes["animated"] += 1
                image.seek(0)
            if image.mode.startswith("I"):
                grey = np.asarray(image).astype(np.uint16) >> 8
                return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
            if image.mode in ("RGBA", "LA", "PA", "P") or "transparency" in image.info:
                rgba = image.convert("RGBA")
                white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
                image = Image.alpha_composite(white, rgba)
            return np.array(image.convert("RGB"))
    except BadSample:
        raise
    except Image.DecompressionBombError as e:
        # Pillow's own limit lies above ours, and it looks first
        raise BadSample("image_bomb", str(e)) from None
    except Exception as e:  # Pillow raises many kinds for broken files
        raise BadSample("image_format", f"{type(e).__name__}: {e}") from None


def moves(image: Image.Image) -> bool:
    """Whether there is a second frame; one that is broken harms nobody."""
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:
        return False


def resize_crop(image: Pixels, box: Box, size: int, bicubic: bool = False) -> Pixels:
    """The box of an (H, W, 3) image, resized to (size, size, 3) with antialiasing."""
    top, left, h, w = box
    part = torch.from_numpy(image)[top : top + h, left : left + w].permute(2, 0, 1)[None]
    if (h, w) != (size, size):
        part = torch.nn.functional.interpolate(
            part, (size, size), mode="bicubic" if bicubic else "bilinear", antialias=True
        )
    return part[0].permute(1, 2, 0).numpy()
