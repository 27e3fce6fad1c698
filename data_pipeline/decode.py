"""Image bytes to pixels, under limits that are checked before anything is allocated.

JPEG by libjpeg-turbo (strict: corrupt entropy data is an error, which Pillow passes over in
silence), the rest by Pillow; resize by torch's antialiased uint8 interpolation, which equals
Pillow's within one level.
"""

import io
import re
import warnings

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vtx_scale.data_pipeline import jpeg
from vtx_scale.data_pipeline.errors import BadSample, described, notes
from vtx_scale.data_pipeline.formats import kind_of, size_of
from vtx_scale.data_pipeline.huffman import left_over

LIMIT = 64_000_000  # pixels
RATIO = 20
# A file of 60 KB can ask for hundreds of passes over a hundred megabytes: a progressive JPEG is
# gone through once a scan, of which encoders write about ten, and a picture of one colour packs a
# thousandfold. Headers say both, so that they are refused before anything is allocated. The memory
# is that of one of many loader processes of a node.
SCANS = 100
MEMORY = 512 << 20  # bytes at once for one picture: what decoders hold, and the pixels
SPARE = 80 << 20  # of these for what headers do not say: texts of a PNG (64 MiB), a strip's copies
STRIP = 1 << 20  # pixels that are brought to RGB at a time
RGB = 3  # bytes a pixel; Pillow's modes take 4 but for these
STORED = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2}
CMYK = 4
CANVASES = 10  # of a WebP: two frames, and of its lossless kind half a third one
DISPOSED = 8  # of a GIF: what its first frame leaves behind, twice while it is made
RUNS = 2  # of a BMP in run lengths: its indices as bytes, twice
FEW = 8  # bytes of padding behind a progressive JPEG, where a zero can stand for many blocks
STRAY = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
Box = tuple[int, int, int, int]  # top, left, height, width
Pixels = NDArray[np.uint8]


def check(height: int, width: int, limit: float = LIMIT) -> None:
    if height * width > limit:
        raise BadSample("image_bomb", f"{width} x {height}")
    if min(height, width) < 2 or max(height, width) > RATIO * min(height, width):
        raise BadSample("image_shape", f"{width} x {height}")


def check_memory(size: int) -> None:
    """Refuse to decode what takes so many bytes at once. Raises BadSample image_memory."""
    if size + SPARE > MEMORY:
        raise BadSample("image_memory", f"{size + SPARE >> 20} MiB")


def decode_image(body: bytes, limit_pixels: float = LIMIT) -> Pixels:
    """(H, W, 3) uint8.

    Raises BadSample alone (and MemoryError): empty, image_format, image_bomb, image_shape,
    image_memory, image_scans, jpeg_truncated, jpeg_corrupt.
    """
    if not body:
        raise BadSample("empty")
    if body[:2] == b"\xff\xd8":
        return decode_jpeg(body, limit_pixels)
    riff = body[:4] == b"RIFF" and body[8:12] == b"WEBP"
    if not riff and body[:4] not in (b"\x89PNG", b"GIF8") and body[:2] != b"BM":
        raise BadSample("image_format", kind_of(body))
    return decode_other(body, limit_pixels)


def decode_jpeg(body: bytes, limit: float) -> Pixels:
    """Strictly; where that is refused, once more without the faults that change no pixel."""
    frame = jpeg.frame_of(body)
    try:
        return decode_strictly(body, frame, limit)
    except (BadSample, MemoryError):
        raise
    except Exception as e:
        fault = e
    try:
        if frame is None or jpeg.ends_early(body):
            raise fault
        pixels = decode_mended(jpeg.plain(body, frame), limit)
    except (BadSample, MemoryError):
        raise
    except Exception as e:
        reason = "jpeg_truncated" if jpeg.ends_early(body) else "jpeg_corrupt"
        raise BadSample(reason, words_of(e)) from None
    notes["jpeg_mended"] += 1
    return pixels


def decode_strictly(body: bytes, frame: jpeg.Frame | None, limit: float) -> Pixels:
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(body)
    except KeyError:  # it has no name for 4:4:1, which it decodes
        if frame is None:
            raise
        height, width = frame.height, frame.width
    check(height, width, limit)
    if frame is not None:
        check_cost(body, frame, RGB if len(frame.sampling) < 4 else CMYK + RGB)
    pixels: Pixels = simplejpeg.decode_jpeg(body)
    return pixels


def check_cost(body: bytes, frame: jpeg.Frame, size: int) -> None:
    """size: bytes a pixel beside coefficients. Raises BadSample image_scans and image_memory."""
    coefficients = frame.coefficients()
    if coefficients and (found := jpeg.scans(body, SCANS)) > SCANS:
        raise BadSample("image_scans", f"{found} scans")
    check_memory(coefficients + size * frame.height * frame.width)


def decode_mended(body: bytes, limit: float) -> Pixels:
    """A file of plain headers; padding behind its coded data and a sampling that the strict decoder
    does not know do no harm. Raises what that decoder raises for others.
    """
    frame = jpeg.frame_of(body)
    assert frame is not None
    check(frame.height, frame.width, limit)
    while True:
        try:
            pixels = decode_strictly(body, frame, limit)
        except (BadSample, MemoryError):
            raise
        except Exception as e:
            if "subsampling" in str(e):
                return decode_unusual(body, frame)
            stray = STRAY.search(str(e))
            if stray is None:
                raise
            # it tells of fewer than there are, since it reads ahead
            most = len(body) if frame.marker in jpeg.SEQUENTIAL else FEW
            cut = jpeg.without_padding(body, int(stray[1]), most)
            if cut is not None and frame.marker in jpeg.SEQUENTIAL:
                left = left_over(body, frame)
                cut = jpeg.without_padding(body, left, left)
            if cut is None:
                raise
            body = cut
        else:
            # of inks the two decoders make colours that differ by a level or two
            return pixels if len(frame.sampling) < 4 else by_pillow(body, frame)


def decode_unusual(body: bytes, frame: jpeg.Frame) -> Pixels:
    """By Pillow, which is silent about broken data: those of a sequential file are looked at
    before.
    """
    check_cost(body, frame, CMYK + RGB)
    if frame.marker in jpeg.SEQUENTIAL:
        left = left_over(body, frame)
        if left and jpeg.without_padding(body, left, left) is None:
            raise BadSample("jpeg_corrupt", f"{left} bytes of coded data were not used")
    return by_pillow(body, frame)


def by_pillow(body: bytes, frame: jpeg.Frame) -> Pixels:
    image = Image.open(io.BytesIO(body), formats=("JPEG",))
    if image.size != (frame.width, frame.height):
        raise BadSample("jpeg_corrupt", "two frames")
    return in_strips(image)


def decode_other(body: bytes, limit: float) -> Pixels:
    """PNG, WebP, GIF, BMP: the first frame; alpha and palette on white;
    16-bit grey by its upper byte.
    """
    try:
        if size := size_of(body):  # else Pillow takes the memory while it looks
            check(*size, limit)
            stored = 4 if body[:1] == b"R" else 1
            check_memory((stored + RGB) * size[0] * size[1] + extra(body, size[0] * size[1]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(body), formats=("PNG", "WEBP", "GIF", "BMP"))
            check(image.height, image.width, limit)
            area = image.height * image.width
            stored = (STORED.get(image.mode, 4) + RGB) * area
            check_memory(stored + extra(body, area, image.info.get("compression")))
            if moves(image):
                notes["animated"] += 1
                image.seek(0)
            return in_strips(image)
    except (BadSample, MemoryError):
        raise
    except Image.DecompressionBombError as e:
        # Pillow's own limit lies above ours, and it looks first
        raise BadSample("image_bomb", str(e)) from None
    except Exception as e:  # Pillow raises many kinds for broken files
        raise BadSample("image_format", words_of(e)) from None


def words_of(error: Exception) -> str:
    """A decoder's own words; type and place besides for what it did not mean to say."""
    if isinstance(error, UnidentifiedImageError):
        return "a broken header"  # its text holds an address in memory
    return str(error) if type(error) in (ValueError, OSError, SyntaxError) else described(error)


def extra(body: bytes, area: int, compression: object = None) -> int:
    """Bytes that Pillow takes beside a picture of so many pixels."""
    if body[:1] == b"R":
        return CANVASES * area + len(body)
    if body[:1] == b"G":
        return DISPOSED * area
    return RUNS * area if body[:1] == b"B" and compression in (1, 2) else 0


def in_strips(image: Image.Image) -> Pixels:
    """(H, W, 3) uint8 of a picture of Pillow's, a strip of rows at a time: its conversions keep
    several copies.
    """
    image.load()
    rows = max(1, STRIP // image.width)
    if rows >= image.height:
        return on_white(image)
    out = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, rows):
        below = min(top + rows, image.height)
        out[top:below] = on_white(image.crop((0, top, image.width, below)))
    return out


def on_white(image: Image.Image) -> Pixels:
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.uint16) >> 8
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "P") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, rgba)
    return np.array(image.convert("RGB"))


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
