"""Broken pictures, texts and labels, one test a row of the table in docs/data.md:
what is wrong is found and named.
"""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data_pipeline.make import (
    GREY,
    Pixels,
    corrupt,
    encoded,
    jpeg,
    picture,
    png_header,
)
from vtx_scale.data_pipeline import members as sample
from vtx_scale.data_pipeline.batches import Batches, InOrder
from vtx_scale.data_pipeline.decode import decode_image
from vtx_scale.data_pipeline.errors import BadSample, notes
from vtx_scale.data_pipeline.opening import open_index
from vtx_scale.data_pipeline.tools.shards import write_shard


def reason(body: bytes) -> str:
    with pytest.raises(BadSample) as bad:
        decode_image(body)
    return bad.value.reason


@pytest.mark.parametrize(
    "body",
    [
        bytes(4000),
        b"<!DOCTYPE html><html>None</html>",
        b"x",
        b"RIFF\x10\0\0\0WAVEfmt ",
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b"GIF89a",
        encoded(picture(0), "PNG")[:200],
        encoded(picture(0), "TIFF"),
        encoded(picture(0), "WEBP")[:100],
    ],
)
def test_what_is_no_picture(body):
    assert reason(body) == "image_format"


def box(brand: bytes, *more: bytes) -> bytes:
    inside = b"ftyp" + brand + bytes(4) + b"".join(more)
    return (len(inside) + 4).to_bytes(4, "big") + inside + bytes(300)


NAMED = {
    "AVIF": (box(b"avif", b"mif1"), box(b"mif1", b"avif", b"miaf"), box(b"avis")),
    "HEIC": (box(b"heic", b"mif1"), box(b"mif1", b"heic"), box(b"heix"), box(b"hevc")),
    "HEIF": (box(b"mif1", b"miaf"),),
    "JPEG XL": (b"\x00\x00\x00\x0cJXL \r\n\x87\n" + bytes(90), b"\xff\x0a" + bytes(90)),
    "JPEG 2000": (b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(90), b"\xff\x4f\xff\x51" + bytes(90)),
    "TIFF": (encoded(picture(0), "TIFF"), b"MM\x00*" + bytes(90)),
    "PSD": (b"8BPS\x00\x01" + bytes(90),),
    "ICO": (encoded(picture(0), "ICO"),),
    "PNM": (encoded(picture(0), "PPM"),),
    "SVG": (
        b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- a drawing -->\n<svg width="3"></svg>',
    ),
    "HTML page": (
        b"<!DOCTYPE html><html>None</html>",
        b"\n\n  <html lang=en><head>",
        b"<!-- 404 -->\r\n<!doctype HTML>",
    ),
    "XML": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',),
    "JSON": (b'{"error": "not found"}', b'[ {"a": 1}]'),
    "PDF": (b"%PDF-1.7\n" + bytes(90),),
    "video (MP4)": (box(b"isom", b"avc1"), box(b"mp42")),
    "video (QuickTime)": (box(b"qt  "),),
    "video (Matroska or WebM)": (b"\x1aE\xdf\xa3" + bytes(90),),
    "RIFF of 'AVI '": (b"RIFF\x10\x00\x00\x00AVI LIST",),
    "RIFF of 'WAVE'": (b"RIFF\x10\x00\x00\x00WAVEfmt ",),
    "zeros": (bytes(4000),),
    "JPEG behind 1 other bytes": (b"\n" + jpeg(),),
    "git-lfs pointer: fetch the file itself": (b"version https://git-lfs.github.com/spec/v1\n",),
    "base64 of a JPEG: decode it": (b"/9j/4AAQSkZJRgABAQ",),
    "begins with 78": (b"x",),
}


@pytest.mark.parametrize("name", NAMED)
def test_formats_that_are_not_read_are_named(name):
    for body in NAMED[name]:
        with pytest.raises(BadSample) as bad:
            decode_image(body)
        assert (bad.value.reason, bad.value.detail) == ("image_format", name)


@pytest.mark.parametrize("left", [-2, -1, 1000, 500, 30, 2])
def test_truncated_jpeg(left):
    assert reason(encoded(picture(0, 60, 80), quality=95)[:left]) == "jpeg_truncated"


def test_corrupt_jpeg():
    """Pillow gives pixels for it without a word."""
    body = encoded(picture(0, 60, 80), quality=95)
    at = body.index(b"\xff\xda") + 200
    zeroed = body[:at] + bytes(400) + body[at + 400 :]
    assert Image.open(io.BytesIO(zeroed)).convert("RGB").size == (80, 60)
    assert reason(corrupt(jpeg())) == reason(zeroed) == "jpeg_corrupt"
    assert reason(b"\xff\xd8" + b"<html>" * 50 + b"\xff\xd9") == "jpeg_corrupt"


BOMB = """
import resource, sys, time
from vtx_scale.data_pipeline.decode import decode_image
from vtx_scale.data_pipeline.errors import BadSample
from tests.data_pipeline.make import jpeg

decode_image(jpeg())
now = next(int(x.split()[1]) for x in open("/proc/self/status") if x.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, ((now + 64 * 1024) * 1024,) * 2)
for body in open(sys.argv[1], "rb").read().split(b"=====") :
    began = time.process_time()
    try:
        decode_image(body)
        print("decoded")
    except BadSample as e:
        print(e.reason, time.process_time() - began < 0.3)
    except MemoryError:
        print("memory")
"""


def test_pixel_bombs_cost_no_memory_and_no_time(tmp_path):
    """50,000 x 50,000 in a process that may take 64 MiB more:
    a PNG, a GIF and a JPEG of few bytes.
    """
    large = bytearray(jpeg())
    at = large.index(b"\xff\xc0")
    large[at + 5 : at + 9] = b"\xc3\x50\xc3\x50"
    gif = bytearray(encoded(picture(0), "GIF"))
    gif[6:10] = b"\x50\xc3\x50\xc3"
    bombs = [png_header(50_000, 50_000), png_header(9_000, 9_000), bytes(large), bytes(gif)]
    (tmp_path / "bombs").write_bytes(b"=====".join(bombs))
    (tmp_path / "bomb.py").write_text(BOMB)
    done = subprocess.run(
        [sys.executable, tmp_path / "bomb.py", tmp_path / "bombs"],
        text=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.stdout.splitlines() == ["image_bomb True"] * 4, done.stderr


@pytest.mark.parametrize(("height", "width"), [(1, 30), (30, 1), (2, 41), (410, 20)])
def test_shapes_that_hold_no_picture(height, width):
    for kind in ("JPEG", "PNG"):
        assert reason(encoded(Image.new("RGB", (width, height)), kind)) == "image_shape"
    assert decode_image(encoded(Image.new("RGB", (40, 2)), "PNG")).shape == (2, 40, 3)


def distance(a, b) -> int:
    return int(np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).max())


@pytest.mark.parametrize("mode", ["CMYK", "L", "RGB"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpegs_of_every_kind(mode, progressive):
    body = encoded(picture(3, 60, 80).convert(mode), progressive=progressive)
    assert distance(decode_image(body), Image.open(io.BytesIO(body)).convert("RGB")) <= 1


def test_grey_png_of_16_bits_keeps_its_steps():
    """Its upper byte; Pillow's own conversion makes nearly all of it white."""
    body = encoded(Image.fromarray(GREY), "PNG")
    assert (decode_image(body) == (GREY >> 8)[..., None]).all()
    assert distance(Image.open(io.BytesIO(body)).convert("RGB"), (GREY >> 8)[..., None]) > 200


def test_transparency_and_palettes_stand_on_white():
    rgba = picture(5).convert("RGBA")
    alpha = np.zeros((24, 32), np.uint8)
    alpha[:, 16:], alpha[:, 8:16] = 255, 128
    rgba.putalpha(Image.fromarray(alpha))
    for kind, near in (("PNG", 0), ("WEBP", 0)):
        out = decode_image(
            encoded(rgba, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
        )
        assert (out[:, :8] == 255).all() and distance(
            out[:, 16:], np.asarray(rgba)[:, 16:, :3]
        ) <= near
        half = (np.asarray(rgba)[:, 8:16, :3].astype(float) * 128 + 255 * 127) / 255
        assert distance(out[:, 8:16], half.round()) <= 1
    palette = picture(5).quantize(8)
    assert distance(decode_image(encoded(palette, "PNG")), palette.convert("RGB")) == 0
    see_through = encoded(palette, "PNG", transparency=0)
    hole = np.asarray(palette) == 0
    out = decode_image(see_through)
    assert (
        hole.any()
        and (out[hole] == 255).all()
        and (out[~hole] == np.asarray(palette.convert("RGB"))[~hole]).all()
    )
    bits = Image.fromarray(GREY > 30_000)
    assert distance(decode_image(encoded(bits, "PNG")), bits.convert("RGB")) == 0


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_a_moving_picture_the_first_frame_counts(kind):
    frames = [Image.new("RGB", (20, 20), c) for c in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    notes.clear()
    out = decode_image(
        encoded(
            frames[0],
            kind,
            save_all=True,
            append_images=frames[1:],
            **({"lossless": True} if kind == "WEBP" else {}),
        )
    )
    assert (out == (250, 0, 0)).all() and notes == {"animated": 1}
    decode_image(encoded(frames[0], kind))
    assert notes == {"animated": 1}, "one frame does not move"


def test_notes_travel_with_the_batch(tmp_path):
    moving = encoded(picture(1), "GIF", save_all=True, append_images=[picture(2)])
    write_shard(
        tmp_path / "a.tar",
        [
            ("a", {"gif": moving, "txt": b"a"}),
            ("b", {"jpg": jpeg(), "txt": b"caf\xe9"}),
            ("c", {"jpg": jpeg(), "txt": b"x" * 70_000}),
        ],
    )
    index = open_index(str(tmp_path))
    batch = Batches(index, InOrder(3), Pixels(), 3, 0, 1)[0]
    assert batch["valid"].all() and batch["notes"] == {
        "animated": 1,
        "text_replaced": 1,
        "text_cut": 1,
    }
    assert batch["data"]["length"].tolist() == [1, 4, 65_536]


def test_orientation_is_left_as_it_lies():
    image = picture(0, 20, 40)
    exif = Image.Exif()
    exif[274] = 6
    assert decode_image(encoded(image, exif=exif)).shape == (20, 40, 3)


def test_pillow_keeps_its_own_limit():
    """Importing the decoder changes nothing for other users of Pillow in the process."""
    assert Image.MAX_IMAGE_PIXELS == 89_478_485


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"plain", "plain"),
        (b"caf\xc3\xa9", "café"),
        (b"caf\xe9 au lait", "caf\N{REPLACEMENT CHARACTER} au lait"),
        (b"x" * 70_000, "x" * 65_536),
        ("漢".encode() * 30_000, "漢" * 21_845),
    ],
)
def test_texts_that_pass(body, expected):
    assert sample.caption({"txt": body}) == expected


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ({}, "member_missing"),
        ({"txt": b""}, "text"),
        ({"txt": b" \n\t"}, "text"),
        ({"json": b'{"caption": ""}'}, "text"),
        ({"json": b'{"caption": 3}'}, "member_missing"),
        ({"json": b"[1]"}, "member_missing"),
        ({"json": b"{"}, "json"),
        ({"json": b"\xff\xfe{}"}, "json"),
        ({"json": b"[" * 100_000}, "json"),
        ({"json": b"[" * 60 + b"]" * 60}, "json"),
        ({"json": b"1" * 6000}, "json"),
    ],
)
def test_captions_that_do_not_pass(members, why):
    with pytest.raises(BadSample) as bad:
        sample.caption(members)
    assert bad.value.reason == why


def test_captions_from_json():
    assert sample.caption({"json": json.dumps({"caption": "a dog"}).encode()}) == "a dog"
    assert sample.caption({"json": b'{"caption": "half \\ud800 pair"}'}) == "half ? pair"
    assert sample.about({"json": b"[" * 49 + b"]" * 49})


@pytest.mark.parametrize(
    ("body", "expected"), [(b"7", 7), (b" 12\n", 12), (b"0", 0), (b"2147483647", 2**31 - 1)]
)
def test_labels(body, expected):
    assert sample.label({"cls": body}) == expected
    assert sample.label({}) == -1


@pytest.mark.parametrize(
    "body", [b"", b"-1", b"cat", b"1.5", b"2147483648", b"9" * 5000, "²".encode()]
)
def test_labels_that_are_none(body):
    with pytest.raises(BadSample, match="label"):
        sample.label({"cls": body})
