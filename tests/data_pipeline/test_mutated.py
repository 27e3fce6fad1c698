"""Pictures that were hurt in every way: a run and `vtx data verify` give the same verdict on each,
and nothing else than a verdict.
"""

import io
import random
import struct
import zlib
from collections import Counter
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data_pipeline.jpegs import of_scans, written
from tests.data_pipeline.make import GREY, encoded, masked, picture, verified
from vtx_scale.data_pipeline import decode
from vtx_scale.data_pipeline.decode import decode_image
from vtx_scale.data_pipeline.errors import BadSample
from vtx_scale.data_pipeline.tools.shards import write_shard

REASONS = {
    "empty",
    "image_format",
    "image_bomb",
    "image_shape",
    "image_memory",
    "image_scans",
    "jpeg_truncated",
    "jpeg_corrupt",
}
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))


def chunk(kind: bytes, body: bytes) -> bytes:
    crc = struct.pack(">I", zlib.crc32(kind + body))
    return struct.pack(">I", len(body)) + kind + body + crc


def png(depth: int, colour: int, interlaced: bool, width: int = 37, height: int = 29) -> bytes:
    """Noise, each row with a filter of its own."""
    rng = np.random.default_rng(8 * depth + colour)
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    sizes = [(width, height)]
    if interlaced:
        passes = (*PASSES, (0, 1, 1, 2))
        sizes = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in passes]
    rows = b"".join(
        bytes([k % 5]) + rng.bytes(-(-w * depth * channels // 8))
        for w, h in sizes
        for k in range(h)
    )
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    parts = [chunk(b"IHDR", head), chunk(b"gAMA", struct.pack(">I", 45455))]
    if colour == 3:
        parts += [chunk(b"PLTE", rng.bytes(3 * 2**depth)), chunk(b"tRNS", rng.bytes(2**depth))]
    parts += [chunk(b"tEXt", b"Title\x00noise"), chunk(b"IDAT", zlib.compress(rows))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


@lru_cache
def seeds() -> list[tuple[str, bytes]]:
    """(extension, picture) of every kind that is read; what a file holds counts, not its name."""
    grain = np.random.default_rng(0).normal(0, 9, (40, 56, 3))
    pixels = (np.asarray(picture(7, 40, 56)) + grain).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(pixels)
    alpha = image.copy()
    alpha.putalpha(image.convert("L"))
    few = image.quantize(13)
    moving = {"save_all": True, "append_images": [image.rotate(90).convert("RGBA")]}
    exif = Image.Exif()
    exif[274], exif[305] = 6, "somebody's"
    jpegs = [encoded(image, subsampling=k, progressive=p) for k in (0, 1, 2) for p in (False, True)]
    jpegs += [encoded(image.convert(m), progressive=p) for m in ("L", "CMYK") for p in (0, 1)]
    jpegs += [encoded(image, restart_marker_blocks=3, exif=exif, icc_profile=bytes(300))]
    jpegs += [written(1, f) for f in ([(4, 2), (1, 1), (1, 1)], [(2, 2), (2, 1), (1, 1)])]
    jpegs += [written(2, [(1, 4), (1, 1), (1, 1)]), written(3, [(2, 2), (1, 1), (1, 1), (1, 1)])]
    jpegs += [written(4, [(2, 2), (1, 1), (1, 1)], apart=True, restart=4), of_scans(40)]
    kinds = [(d, 0) for d in (1, 2, 4, 8, 16)] + [(d, 3) for d in (1, 2, 4, 8)]
    kinds += [(d, c) for d in (8, 16) for c in (2, 4, 6)]
    pngs = [png(d, c, i) for d, c in kinds for i in (False, True)]
    pngs += [encoded(alpha, "PNG", **moving), encoded(Image.fromarray(GREY), "PNG")]
    webps = [encoded(image, "WEBP"), encoded(alpha, "WEBP"), encoded(alpha, "WEBP", **moving)]
    webps += [encoded(alpha, "WEBP", lossless=True), encoded(image, "WEBP", exif=exif)]
    gifs = [encoded(few, "GIF"), encoded(few, "GIF", transparency=3, interlace=0)]
    gifs += [encoded(few, "GIF", disposal=2, transparency=0, **moving, comment=b"hello")]
    bmps = [encoded(x, "BMP") for x in (image, few, image.convert("L"), image.convert("1"))]
    named = {"jpg": jpegs + bmps, "png": pngs, "webp": webps, "gif": gifs}
    return [(extension, body) for extension, bodies in named.items() for body in bodies]


def flips(body: bytearray, rng: random.Random) -> None:
    """Bits anywhere, or bytes at the beginning, where the headers are."""
    for _ in range(rng.choice([1, 1, 3, 20])):
        end = min(len(body), rng.choice([40, 700, len(body)]))
        body[rng.randrange(end)] ^= 1 << rng.randrange(8)


def numbers(body: bytearray, rng: random.Random) -> None:
    """Two or four bytes that may be a length or a size."""
    values = (0, 1, 2, 7, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF)
    at, n = rng.randrange(min(len(body) - 4, rng.choice([40, 400, 4000]))), rng.choice([1, 2, 4])
    body[at : at + n] = (rng.choice(values) % 256**n).to_bytes(n, rng.choice(["big", "little"]))


def lengths(body: bytearray, rng: random.Random) -> None:
    """The length of a JPEG's segment or a PNG's chunk is off by a little or a lot."""
    found = [i for i in range(2, len(body) - 4) if body[i] == 0xFF and 0xC0 <= body[i + 1] < 0xFF]
    if body[:4] == b"\x89PNG":
        kinds = (b"IHDR", b"PLTE", b"tRNS", b"tEXt", b"IDAT", b"acTL", b"fcTL", b"IEND")
        found = [at - 4 for kind in kinds if (at := body.find(kind)) > 0]
    if not found:
        return numbers(body, rng)
    at = rng.choice(found) + 2
    value = int.from_bytes(body[at : at + 2], "big") + rng.choice([-9, -2, -1, 1, 2, 9, 300])
    body[at : at + 2] = (value % 65536).to_bytes(2, "big")


def cuts(body: bytearray, rng: random.Random) -> None:
    del body[rng.randrange(1, len(body)) :]
    body += rng.choice([b"", b"", bytes(rng.randrange(900)), b"<html>gone</html>"])


def holes(body: bytearray, rng: random.Random) -> None:
    """A range is zeros, missing or twice there."""
    at = rng.randrange(len(body))
    n = min(rng.choice([1, 4, 30, 500, 5000]), len(body) - at)
    body[at : at + n] = rng.choice([bytes(n), b"", bytes(body[at : at + n]) * 2, b"\xff" * n])


def splices(body: bytearray, rng: random.Random) -> None:
    """A piece of another picture, perhaps of another kind, or its whole."""
    other = rng.choice(seeds())[1]
    begin = rng.randrange(len(other))
    piece = other[begin : begin + rng.choice([2, 16, 200, 9000])]
    at = rng.choice([2, 8, rng.randrange(len(body))])
    body[at : at + rng.choice([0, len(piece)])] = piece


def with_checksums(body: bytes) -> bytes:
    """A PNG whose chunks fit their checksums again, so that what they hold is looked at."""
    out, at = [body[:8]], 8
    while at + 12 <= len(body):
        size = int.from_bytes(body[at : at + 4], "big")
        if at + 12 + size > len(body):
            break
        out.append(chunk(body[at + 4 : at + 8], body[at + 8 : at + 8 + size]))
        at += 12 + size
    return b"".join([*out, body[at:]])


HURT = (flips, numbers, lengths, cuts, holes, splices)


def mutated(count: int, seed: int) -> list[tuple[str, bytes]]:
    rng, out = random.Random(seed), []
    for k in range(count):
        extension, good = seeds()[k % len(seeds())]
        body = bytearray(good)
        for _ in range(rng.choice([1, 1, 1, 1, 2])):
            if len(body) > 8:
                rng.choice(HURT)(body, rng)
        fixed = extension == "png" and rng.random() < 0.9
        out.append((extension, with_checksums(bytes(body)) if fixed else bytes(body)))
    return out


def test_the_seeds_are_sound():
    for extension, body in seeds():
        pixels = decode_image(body)
        known = Image.open(io.BytesIO(body))
        assert pixels.shape == (known.height, known.width, 3), extension
    assert len(seeds()) > 50


@pytest.mark.parametrize("strip", [1, 90, 1000])
def test_strips_change_no_pixel(strip, monkeypatch):
    """What is brought to RGB a few rows at a time is what is brought there as a whole."""
    as_one = [decode_image(body) for _, body in seeds()]
    monkeypatch.setattr(decode, "STRIP", strip)
    for (_, body), known in zip(seeds(), as_one, strict=True):
        assert np.array_equal(decode_image(body), known)


@pytest.mark.parametrize(
    ("count", "seed"),
    [(2000, 1), pytest.param(20_000, 2, marks=pytest.mark.full)],
)
def test_a_run_and_verify_give_one_verdict(count: int, seed: int, tmp_path: Path):
    bodies = mutated(count, seed)
    rows = [(f"{k:05d}", {x: body, "txt": b"a"}) for k, (x, body) in enumerate(bodies)]
    for begin in range(0, count, 1000):
        write_shard(tmp_path / f"{begin:05d}.tar", rows[begin : begin + 1000])
    trained, judged = masked(tmp_path), verified(tmp_path)
    assert trained == judged
    reasons = Counter(trained.values())
    assert set(reasons) <= REASONS, "a decoder raised what it does not know"
    assert count / 4 < sum(reasons.values()) < count and len(reasons) >= 5


def test_nothing_but_a_bad_sample_comes_out_of_the_decoder():
    """The same without the function that would turn anything into a bad sample."""
    for _, body in mutated(1000, 3):
        try:
            pixels = decode_image(body)
        except BadSample as e:
            assert e.reason in REASONS and str(e).isprintable()
        else:
            assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
