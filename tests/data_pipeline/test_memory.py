"""What one picture takes: refused by its header before it is allocated, or below the limit."""

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data_pipeline.jpegs import written
from tests.data_pipeline.make import encoded
from vtx_scale.data_pipeline import decode
from vtx_scale.data_pipeline.decode import MEMORY
from vtx_scale.data_pipeline.errors import BadSample

SIDE = 7990  # a square just below the limit of pixels
CHILD = """
import os, sys, time
from vtx_scale.data_pipeline import decode
from vtx_scale.data_pipeline.errors import BadSample

def status(name):
    line = next(x for x in open("/proc/self/status") if x.startswith(name))
    return int(line.split()[1]) * 1024

decode.decode_image(open(sys.argv[1], "rb").read())
for path in sys.argv[2:]:
    if child := os.fork():
        os.waitpid(child, 0)
        continue
    body = open(path, "rb").read()
    before, began = status("VmRSS"), time.process_time()
    try:
        answer = "x".join(map(str, decode.decode_image(body).shape))
    except BadSample as e:
        answer = e.reason
    print(answer, status("VmHWM") - before, time.process_time() - began, flush=True)
    os._exit(0)
"""


def measured(folder: Path, bodies: list[bytes]) -> list[tuple[str, int, float]]:
    """(shape or reason, bytes at the peak, seconds) of each, each in a process of its own."""
    paths = []
    for k, body in enumerate([encoded(Image.new("RGB", (8, 8)), "PNG"), *bodies]):
        paths.append(folder / f"{k}")
        paths[-1].write_bytes(body)
    out = subprocess.run(
        [sys.executable, "-c", CHILD, *paths],
        text=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    rows = [line.split() for line in out.stdout.splitlines()]
    assert len(rows) == len(bodies), out.stderr
    return [(answer, int(peak), float(seconds)) for answer, peak, seconds in rows]


def png(width: int, height: int, depth: int, colour: int, interlaced: int = 0) -> bytes:
    """All zeros; its palette, if it has one, is transparent."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + crc

    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    row = bytes(1 + -(-width * depth * channels // 8))
    packer = zlib.compressobj(1)
    data = b"".join(packer.compress(row * 64) for _ in range(-(-height // 64) + 1 + interlaced))
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    palette = chunk(b"PLTE", bytes(768)) + chunk(b"tRNS", bytes(10)) if colour == 3 else b""
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + palette
        + chunk(b"IDAT", data + packer.flush())
        + chunk(b"IEND", b"")
    )


def with_size(body: bytes, width: int, height: int) -> bytes:
    """A JPEG, WebP or GIF whose header claims another size."""
    out = bytearray(body)
    if body[:2] == b"\xff\xd8":
        at = next(body.index(bytes([0xFF, m])) for m in (0xC0, 0xC2) if bytes([0xFF, m]) in body)
        out[at + 5 : at + 9] = struct.pack(">HH", height, width)
    elif body[:4] == b"GIF8":
        out[6:10] = struct.pack("<HH", width, height)
    elif body[12:16] == b"VP8L":
        out[21:25] = struct.pack("<I", (height - 1) << 14 | (width - 1))
    elif body[12:16] == b"VP8X":
        out[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    else:
        out[26:30] = struct.pack("<HH", width, height)
    return bytes(out)


def large_frame(body: bytes, width: int, height: int) -> bytes:
    """A GIF whose screen is small and whose first frame is not."""
    at = body.index(b",", 13 + (3 << (body[10] & 7) + 1))
    return body[: at + 5] + struct.pack("<HH", width, height) + body[at + 9 :]


def too_large() -> tuple[list[bytes], list[bytes]]:
    """Pictures that claim a size below the limit of pixels, at which their decoders would take more
    than half a gigabyte. Pillow takes memory for the first ones while it looks at the header.
    """
    small = Image.new("RGB", (40, 40), (9, 80, 7))
    clear = Image.new("RGBA", (40, 40))
    first = small.quantize(4)
    more = {"save_all": True, "append_images": [small.convert("RGBA").rotate(9)]}
    gif = encoded(first, "GIF", transparency=0, disposal=2, **more)
    webps = [encoded(small, "WEBP"), encoded(clear, "WEBP", lossless=True)]
    webps += [encoded(clear, "WEBP", **more)]
    opened = [with_size(body, 6400, 6400) for body in webps]
    opened += [with_size(gif, 7600, 7600), large_frame(gif, 7600, 7600)]
    full = encoded(small, progressive=True, subsampling=0)
    apart, rare = [(1, 1)] * 3, [(4, 2), (1, 1), (1, 1)]
    decoded = [
        with_size(full, SIDE, SIDE),
        with_size(encoded(small.convert("CMYK"), progressive=True), 6400, 6400),
        with_size(written(0, apart, apart=True), SIDE, SIDE),
        with_size(written(0, rare, apart=True), SIDE, SIDE),
    ]
    return opened, decoded


def test_too_large_for_memory_is_known_before_it_is_taken(tmp_path):
    opened, decoded = too_large()
    bodies = opened + decoded
    for body, (answer, peak, seconds) in zip(bodies, measured(tmp_path, bodies), strict=True):
        assert answer == "image_memory", body[:30]
        assert peak < 8 << 20 and seconds < 0.2


def test_pillow_does_not_look_at_what_is_too_large(monkeypatch):
    """Its WebP and GIF take canvases for the size that they read."""

    def look(*args, **more):
        raise AssertionError("Pillow looked")

    monkeypatch.setattr(decode.Image, "open", look)
    for body in too_large()[0]:
        with pytest.raises(BadSample, match="image_memory"):
            decode.decode_image(body)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_too_little_memory_is_no_fault_of_the_picture(kind, monkeypatch):
    def fail(*args, **more):
        raise MemoryError

    monkeypatch.setattr(decode.Image, "open", fail)
    monkeypatch.setattr(decode.simplejpeg, "decode_jpeg", fail)
    with pytest.raises(MemoryError):
        decode.decode_image(encoded(Image.new("RGB", (8, 8)), kind))


def rgba(side: int) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (side // 8, side // 8, 4), dtype=np.uint8)
    return Image.fromarray(np.kron(noise, np.ones((8, 8, 1), np.uint8)))


def rgb(side: int) -> Image.Image:
    return rgba(side).convert("RGB")


def moving(image: Image.Image, kind: str, **options) -> bytes:
    return encoded(image, kind, save_all=True, append_images=[image.rotate(90)], **options)


CELLS = {  # name -> picture of a side that eight divides
    "palette PNG": lambda n: png(n, n, 8, 3),
    "interlaced palette PNG": lambda n: png(n, n, 8, 3, interlaced=1),
    "RGBA PNG of 16 bits": lambda n: png(n, n, 16, 6),
    "RGBA PNG": lambda n: encoded(rgba(n), "PNG", compress_level=1),
    "RGB PNG": lambda n: encoded(rgb(n), "PNG", compress_level=1),
    "grey PNG of 16 bits": lambda n: png(n, n, 16, 0),
    "PNG of bits": lambda n: png(n, n, 1, 0),
    "grey PNG with alpha": lambda n: png(n, n, 8, 4),
    "moving PNG": lambda n: moving(rgba(n), "PNG", compress_level=1, disposal=1),
    "GIF": lambda n: encoded(rgb(n).quantize(8), "GIF"),
    "moving GIF": lambda n: moving(rgb(n).quantize(8), "GIF", transparency=0, disposal=2),
    "BMP": lambda n: encoded(rgb(n), "BMP"),
    "lossy WebP": lambda n: encoded(rgb(n), "WEBP", method=0),
    "WebP": lambda n: encoded(rgba(n), "WEBP", lossless=True, method=0, quality=0),
    "moving WebP": lambda n: moving(rgba(n), "WEBP", method=0),
    "JPEG": lambda n: encoded(rgb(n)),
    "progressive": lambda n: encoded(rgb(n), progressive=True, subsampling=0, quality=50),
    "progressive grey": lambda n: encoded(rgb(n).convert("L"), progressive=True, quality=50),
    "inks": lambda n: encoded(rgb(n).convert("CMYK")),
    "progressive inks": lambda n: encoded(rgb(n).convert("CMYK"), progressive=True, quality=50),
}


def estimates(monkeypatch, bodies: list[bytes]) -> list[int]:
    """What is known of each from its header."""
    seen: list[int] = []
    monkeypatch.setattr(decode, "check_memory", seen.append)
    found = []
    for body in bodies:
        seen.clear()
        decode.decode_image(body)
        found.append(max(seen))
    monkeypatch.undo()
    return found


def test_what_is_measured_stays_below_the_estimate(tmp_path, monkeypatch):
    """At two million pixels, of which the spare bytes take many times as much as a strip does."""
    bodies = [make(1440) for make in CELLS.values()]
    rows = zip(CELLS, estimates(monkeypatch, bodies), measured(tmp_path, bodies), strict=True)
    for name, estimate, (answer, peak, _) in rows:
        assert answer == "1440x1440x3"
        assert estimate / 3 < peak < estimate + (48 << 20), (name, estimate >> 20, peak >> 20)


@pytest.mark.full
@pytest.mark.parametrize("name", CELLS)
def test_the_largest_lawful_picture_stays_below_the_limit(name, tmp_path, monkeypatch):
    """About the largest square of each kind is decoded, and takes less than the limit."""
    make = CELLS[name]
    each = estimates(monkeypatch, [make(1440)])[0] / 1440**2
    side = min(SIDE, int(((MEMORY - decode.SPARE) / each) ** 0.5))
    for share in (1, 0.95, 0.9):  # the file itself counts too, and is not known in advance
        n = int(side * share) // 8 * 8
        ((answer, peak, _),) = measured(tmp_path, [make(n)])
        if answer != "image_memory":
            break
    print(f"{name}: {n} x {n}, {peak >> 20} MiB")
    assert answer == f"{n}x{n}x3" and peak < MEMORY
