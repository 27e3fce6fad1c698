"""Pictures made smaller: a random crop of 224 pixels needs a fraction of a photograph."""

import io
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from vtx_scale.data_pipeline.decode import decode_image
from vtx_scale.data_pipeline.tar import IMAGES

QUALITY = 95  # of JPEG and WebP
MASK = "mask.png"

Change = Callable[[bytes], bytes]  # a picture in, a picture out; picklable; may raise BadSample


@dataclass(frozen=True)
class Edit:
    """What is done to a sample's picture: made smaller to `short_side` pixels where it is larger
    and that is not 0, then handed to `change`. A mask is made as small as its picture.
    """

    short_side: int = 0
    change: Change | None = None

    def __call__(self, members: dict[str, bytes]) -> dict[str, bytes]:
        """The members with another picture. Raises BadSample where it cannot be decoded."""
        name = next((x for x in IMAGES if x in members), "")
        if not name:
            return members
        out = dict(members)
        if self.short_side:
            out[name], size = smaller(members[name], self.short_side)
            if size and MASK in members:
                out[MASK] = resized_mask(members[MASK], size)
        if self.change is not None:
            out[name] = self.change(out[name])
        return out


def smaller(body: bytes, short_side: int) -> tuple[bytes, tuple[int, int] | None]:
    """A picture with a short side of so many pixels, and its (width, height); the same bytes and
    None where it is not larger.

    A JPEG or WebP stays one, at quality 95; of the other formats a PNG is made. Profiles and EXIF,
    which no reader looks at, are left out. Raises BadSample as `decode_image` does.
    """
    pixels = decode_image(body)
    height, width = pixels.shape[:2]
    if min(height, width) <= short_side:
        return body, None
    scale = short_side / min(height, width)
    size = max(short_side, round(width * scale)), max(short_side, round(height * scale))
    image = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)
    kind = "JPEG" if body[:2] == b"\xff\xd8" else "WEBP" if body[:4] == b"RIFF" else "PNG"
    out = io.BytesIO()
    image.save(out, kind, **({} if kind == "PNG" else {"quality": QUALITY}))
    return out.getvalue(), size


def resized_mask(body: bytes, size: tuple[int, int]) -> bytes:
    """A mask of another (width, height): each pixel that of the nearest one, as its values mean
    objects. Raises BadSample where it cannot be decoded.
    """
    decode_image(body)  # with the limits of all pictures
    with Image.open(io.BytesIO(body)) as image:
        small = image.resize(size, Image.Resampling.NEAREST)
    out = io.BytesIO()
    small.save(out, "PNG")
    return out.getvalue()
