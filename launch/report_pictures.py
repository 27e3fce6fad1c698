"""The pictures of a run, small enough for a page."""

import base64
import io
import warnings
from collections.abc import Callable, Iterator
from functools import partial

from PIL import Image

from vtx_scale.data_pipeline.objects import AnyPath
from vtx_scale.launch.board_pictures import board_pictures
from vtx_scale.launch.redact import shown
from vtx_scale.launch.report_charts import Picture

FOLDERS = ("pictures", "samples")
ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
SIDE = 640  # pixels of a picture in the page
SMALL = 160  # pixels up to which its pixels are seen
COUNT = 24
FILE = 16 << 20  # bytes of a file that is looked at
PIXELS = 64 << 20
ROOM = 900_000  # bytes of all pictures of a run, in the page


def pictures(folder: AnyPath) -> tuple[list[Picture], int]:
    """The newest by name of what lies in a run folder and the newest of each tag in its TensorBoard
    files, and how many are left out.

    Raises OSError where the folder cannot be read.
    """
    out: list[Picture] = []
    room, left = ROOM, 0
    for name, body in bodies(folder):
        picture = small(name, body()) if len(out) < COUNT else None
        if picture is None or len(picture.source) > room:
            left += 1
            continue
        room -= len(picture.source)
        out.append(picture)
    return out, left


def bodies(folder: AnyPath) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """(name, what reads it) of all that may be a picture."""
    for path in sorted(files(folder), key=lambda path: path.name, reverse=True):
        yield f"{path.parent.name}/{path.name}", path.read_bytes
    for tag, (step, encoded) in sorted(board_pictures(folder).items()):
        yield f"{tag}, step {step:,}", partial(bytes, encoded)


def files(folder: AnyPath) -> Iterator[AnyPath]:
    """Those that may be pictures."""
    for name in FOLDERS:
        if (folder / name).is_dir():
            for path in (folder / name).iterdir():
                if path.name.lower().endswith(ENDINGS):
                    yield path


def small(name: str, body: bytes) -> Picture | None:
    """None of what is no picture or is too large."""
    if len(body) > FILE:
        return None
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(body)) as image:
            warnings.simplefilter("ignore")
            if image.width * image.height > PIXELS:
                return None
            pixels = image.convert("RGB")
    except Exception:  # whatever a library says of bytes that are no picture
        return None
    tiny = max(pixels.size) <= SMALL
    pixels.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    kind = "PNG" if tiny else "JPEG"
    pixels.save(out, kind, **({} if tiny else {"quality": 85}))
    code = base64.b64encode(out.getvalue()).decode()
    return Picture(shown(name, 120), f"data:image/{kind.lower()};base64,{code}", tiny)
