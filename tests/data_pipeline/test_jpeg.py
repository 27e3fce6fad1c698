"""JPEGs: what is sound is decoded as Pillow does, what is broken is refused and rightly named."""

import io
import random
from collections import Counter

import numpy as np
import pytest
import simplejpeg
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.data_pipeline.jpegs import of_scans, segment, written
from tests.data_pipeline.make import encoded, picture
from vtx_scale.data_pipeline.decode import SCANS, decode_image
from vtx_scale.data_pipeline.errors import BadSample, notes
from vtx_scale.data_pipeline.huffman import left_over
from vtx_scale.data_pipeline.jpeg import frame_of

FACTOR = st.tuples(st.integers(1, 4), st.integers(1, 4))


def pillow(body: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(body)).convert("RGB"))


def verdict(body: bytes) -> str:
    """The reason, or "" and a note where it was decoded."""
    notes.clear()
    try:
        decode_image(body)
    except BadSample as e:
        assert not notes
        return e.reason
    return ""


def distance(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b).max())


def strictly(body: bytes) -> np.ndarray | None:
    try:
        return simplejpeg.decode_jpeg(body)
    except (ValueError, KeyError):
        return None


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([1, 3, 3, 3, 4]).flatmap(lambda n: st.lists(FACTOR, min_size=n, max_size=n)),
    st.integers(8, 60),
    st.integers(8, 60),
    st.sampled_from([None, 0, 1, 2, 9]),
    st.sampled_from([0, 0, 2, 3]),
    st.booleans(),
    st.integers(0, 1000),
)
@example([(4, 2), (1, 1), (1, 1)], 40, 56, None, 0, False, 0)  # 4:1:0
@example([(1, 4), (1, 1), (1, 1)], 40, 56, None, 0, False, 0)  # 4:4:1
@example([(3, 1), (1, 1), (1, 1)], 40, 56, None, 2, False, 0)
@example([(2, 2), (2, 1), (1, 1)], 40, 56, None, 0, False, 0)  # unequal chroma
@example([(1, 1), (2, 1), (1, 1)], 40, 56, None, 0, False, 0)
@example([(2, 2), (1, 1), (1, 1), (1, 1)], 40, 56, 0, 0, False, 0)  # CMYK
@example([(2, 2), (1, 1), (1, 1), (1, 1)], 40, 56, 2, 0, False, 0)  # YCCK
@example([(1, 1), (2, 2), (1, 1), (2, 1)], 40, 56, 2, 0, True, 0)
def test_every_sampling_is_as_pillow_has_it(factors, height, width, adobe, restart, apart, seed):
    """Also in several scans and with restart markers. What strict decoding takes keeps its bits,
    which for inks are within two of Pillow's.
    """
    if not apart and len(factors) > 1 and sum(h * v for h, v in factors) > 10:
        apart = True  # no scan holds more blocks
    body = written(seed, factors, height, width, adobe=adobe, restart=restart, apart=apart)
    try:
        known = pillow(body)
    except OSError:
        assert verdict(body) == "jpeg_corrupt"
        return
    assert verdict(body) == ""
    pixels, strict = decode_image(body), strictly(body)
    if strict is not None:
        assert np.array_equal(pixels, strict) and not notes
        assert distance(pixels, known) <= (2 if len(factors) == 4 else 0)
    else:
        assert np.array_equal(pixels, known) and notes["jpeg_mended"] == 2


def photo(seed: int, **options) -> bytes:
    return encoded(picture(seed, 60, 80), **options)


SOUND = {
    "4:2:0": lambda s: photo(s),
    "4:4:4": lambda s: photo(s, subsampling=0),
    "grey": lambda s: encoded(picture(s, 60, 80).convert("L")),
    "inks": lambda s: encoded(picture(s, 60, 80).convert("CMYK")),
    "progressive": lambda s: photo(s, progressive=True),
    "restarts": lambda s: photo(s, restart_marker_blocks=2),
    "4:1:0": lambda s: written(s, [(4, 2), (1, 1), (1, 1)]),
    "in scans": lambda s: written(s, [(2, 2), (1, 1), (1, 1)], apart=True),
}


def behind(body: bytes, marker: int) -> int:
    """Where the first segment of this kind begins."""
    return body.index(bytes([0xFF, marker]))


def put(at: int, what: bytes):
    return lambda body: body[:at] + what + body[at:]


def before(marker: int, what: bytes):
    def fault(body: bytes) -> bytes:
        at = behind(body, marker)
        first = segment(0xFE, b"") if at == 2 else b""  # Pillow knows a JPEG by three bytes
        return body[:at] + first + what + body[at:]

    return fault


def with_revision(major: int, minor: int):
    jfif = segment(0xE0, b"JFIF\x00" + bytes([major, minor]) + b"\x00\x00\x01\x00\x01\x00\x00")

    def fault(body: bytes) -> bytes:
        at = body.find(b"JFIF\x00")
        if at < 0:
            return body[:2] + jfif + body[2:]
        return body[: at + 5] + bytes([major, minor]) + body[at + 7 :]

    return fault


def sequential(body: bytes) -> bytes:
    """All zeros where a scan names its coefficients, as some cameras write."""
    if b"\xff\xc2" in body:
        return body
    at = behind(body, 0xDA)
    end = at + 2 + int.from_bytes(body[at + 2 : at + 4], "big")
    return body[: end - 3] + bytes(3) + body[end:]


def padding(body: bytes) -> bytes:
    return bytes(3) if b"\xff\xc2" in body else b"\x55" * 700


ICC = b"ICC_PROFILE\x00"
EXIF = b"Exif\x00\x00"
FAULTS = {
    "ICC: 2 of 1": put(2, segment(0xE2, ICC + b"\x02\x01" + bytes(200))),
    "ICC: 1 of 2": put(2, segment(0xE2, ICC + b"\x01\x02" + bytes(200))),
    "ICC: twice": put(2, segment(0xE2, ICC + b"\x01\x01x") * 2),
    "ICC: 0 of 0": put(2, segment(0xE2, ICC + b"\x00\x00" + bytes(20))),
    "ICC: ends in its name": put(2, segment(0xE2, ICC[:7])),
    "ICC: length too short": put(2, segment(0xE2, ICC + b"\x01\x01" + bytes(40)) + b"\x00" * 9),
    "EXIF: length too short": put(2, segment(0xE1, EXIF + b"II*\x00" + bytes(30)) + b"\x00\x12"),
    "EXIF: without a word": put(2, segment(0xE1, EXIF)),
    "EXIF: a thumbnail cut": put(2, segment(0xE1, EXIF + b"\xff\xd8\xff\xdb\x00" + bytes(9))),
    "XMP: binary": put(2, segment(0xE1, b"http://ns.adobe.com/xap/1.0/\x00" + bytes(range(256)))),
    "bytes before quantizers": before(0xDB, b"junk!"),
    "bytes before Huffman codes": before(0xC4, b"\x00\x00"),
    "bytes before the scan": before(0xDA, b"\x07"),
    "stuffed bytes between": before(0xDB, b"\xff\x00\x01"),
    "fill bytes between": before(0xDB, b"\xff\xff\xff"),
    "JFIF 2.1": with_revision(2, 1),
    "JFIF 0.0": with_revision(0, 0),
    "JFIF 1.2": with_revision(1, 2),
    "Adobe, a byte short": put(2, segment(0xEE, b"Adobe\x00d\x00\x00\x00\x00")),
    "a comment of junk": put(2, segment(0xFE, bytes(range(256)) * 3)),
    "a scan of no coefficients": sequential,
    "a zero before the end": lambda b: b[:-2] + b"\x00" + b[-2:],
    "a newline before the end": lambda b: b[:-2] + b"\n" + b[-2:],
    "white space before the end": lambda b: (
        b[:-2] + b"\r\n" * (3 if b"\xff\xc2" in b else 9) + b[-2:]
    ),
    "a run before the end": lambda b: b[:-2] + padding(b) + b[-2:],
    "fill bytes before the end": lambda b: b[:-2] + b"\xff" * 5 + b[-2:],
    "text behind the end": lambda b: b + b"</html>",
    "another behind the end": lambda b: b + photo(3),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_headers_change_no_pixel(fault):
    """The pixels are those of the file without the fault, and Pillow's of the file with it."""
    for kind, sound in SOUND.items():
        good = sound(5)
        body = FAULTS[fault](good)
        if kind in ("inks", "4:1:0", "in scans") and fault.startswith("JFIF"):
            continue  # a revision is that of JFIF, which knows neither inks nor their absence
        assert verdict(body) == "", (kind, fault)
        mended = notes["jpeg_mended"]
        pixels = decode_image(body)
        near = 2 if kind == "inks" else 0
        assert distance(pixels, decode_image(good)) <= near, kind
        assert distance(pixels, pillow(body)) <= near * (not mended), kind
        assert mended == (strictly(body) is None), "counted where strict decoding refuses"


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(SOUND)),
    st.lists(st.sampled_from(sorted(FAULTS)), min_size=2, max_size=4, unique=True),
    st.integers(0, 4),  # of data that end like padding one cannot tell what was lost
)
def test_faults_together(kind, faults, seed):
    good = SOUND[kind](seed)
    body = good
    # bytes in front of a marker's fill bytes would make another marker of them
    for name in sorted(faults, key=lambda n: n == "fill bytes between"):
        if not name.startswith("JFIF") and "end" not in name:
            body = FAULTS[name](body)
    for name in sorted(n for n in faults if n.endswith("the end"))[:1]:
        body = FAULTS[name](body)
    assert verdict(body) == ""
    assert distance(decode_image(body), decode_image(good)) <= (2 if kind == "inks" else 0)


def broken_codes(kind: str, body: bytes, rng: random.Random) -> bytes:
    """Coded data that end too early, in one of four ways."""
    at = behind(body, 0xDA)
    begin = at + 2 + int.from_bytes(body[at + 2 : at + 4], "big")
    place = begin + (len(body) - begin) // 2
    way = rng.randrange(4)
    if way == 0:  # a part is missing
        return body[:place] + body[-2:]
    if way == 1:  # a marker stands in it
        return body[:place] + b"\xff\xc4\x00\x05\x00\x01\x02" + body[place + 7 :]
    if way == 2:  # zeros up to the end
        return body[:place] + bytes(len(body) - place - 2) + body[-2:]
    return body[:-2] + bytes(rng.randrange(1, 255) for _ in range(60)) + body[-2:]


@pytest.mark.parametrize("kind", SOUND)
def test_broken_codes_are_refused_behind_any_header(kind):
    rng = random.Random(kind)
    for seed in range(6):
        broken = broken_codes(kind, SOUND[kind](seed), rng)
        assert verdict(broken) == "jpeg_corrupt", (kind, seed)
        for fault in ("ICC: 2 of 1", "bytes before quantizers", "a comment of junk"):
            assert verdict(FAULTS[fault](broken)) == "jpeg_corrupt", (kind, seed, fault)


def hurt(body: bytes, rng: random.Random) -> bytes:
    """Coded data with one bit, some bytes or all bytes from a place on lost; the end stays."""
    begin, end = behind(body, 0xDA) + 14, len(body) - 2
    place = rng.randrange(begin, end)
    n = min(rng.randrange(1, 400), end - place)
    lost = [
        bytes([body[place] ^ 1 << rng.randrange(8)]) + body[place + 1 : end],
        bytes(n) + body[place + n : end],
        body[place + n // 7 : end],
        bytes(rng.randrange(256) for _ in range(1 + n // 20)) + body[place:end],
        bytes(end - place),
        bytes([body[place]]) * (end - place),
    ]
    return body[:place] + lost[rng.randrange(len(lost))] + body[end:]


def grainy(seed: int, **options) -> bytes:
    grain = np.random.default_rng(seed).normal(0, 12, (60, 80, 3))
    pixels = (np.asarray(picture(seed, 60, 80)) + grain).clip(0, 255).astype(np.uint8)
    return encoded(Image.fromarray(pixels), **options)


@pytest.mark.parametrize("count", [2000, pytest.param(20_000, marks=pytest.mark.full)])
def test_mending_lets_no_broken_codes_pass(count):
    """Where strict decoding refuses coded data that were hurt, so do we, or the pixels are those of
    the data before.
    """
    rng = random.Random(count)
    options = ({}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_blocks": 3})
    refused = 0
    for i in range(count):
        body = grainy(i % 40, **options[i % 4])
        broken = hurt(body, rng)
        if strictly(broken) is None:
            refused += 1
            if not verdict(broken):
                assert np.array_equal(decode_image(broken), strictly(body)), i
    assert refused > count / 2


def test_the_walk_through_codes_agrees_with_strict_decoding():
    """On files that both take. A decoder that reads ahead does not see eight bytes that are left,
    be it at the end, a restart or another scan.
    """
    rng, refused = random.Random(5), Counter()
    for i in range(900):
        body = (
            grainy(i % 40),
            grainy(i % 40, restart_marker_blocks=3),
            written(i % 40, [(2, 2), (1, 1), (1, 1)], apart=True, restart=5 * (i % 2)),
        )[i % 3]
        broken = hurt(body, rng)
        frame = frame_of(broken)
        assert frame is not None and left_over(body, frame) == 0
        try:
            left = left_over(broken, frame)
            assert left >= 0
        except BadSample as e:
            assert e.reason == "jpeg_corrupt"
            left = -1
        try:
            simplejpeg.decode_jpeg(broken)
        except ValueError as e:
            refused[i % 3] += 1
            assert left or "Invalid SOS" in str(e), i  # of no consequence to its codes
        else:
            assert left <= 8 and (left >= 0 or i % 3), i
    assert min(refused.values()) > 150


def test_codes_that_are_too_many_and_components_without_data():
    body = written(0, [(4, 2), (1, 1), (1, 1)])
    flood = segment(0xC4, bytes([0, 255] + [255] * 15) + bytes(255 * 16))
    flooded = before(0xDA, flood)(body)
    with pytest.raises(BadSample, match="more Huffman codes"):
        left_over(flooded, frame_of(flooded))
    assert verdict(flooded) == "jpeg_corrupt"
    apart = written(0, [(4, 2), (1, 1), (1, 1)], apart=True)
    last = apart.rindex(b"\xff\xda")
    assert verdict(apart) == "" and verdict(apart[:last] + b"\xff\xd9") == "jpeg_corrupt"
    assert verdict(body[:-2] + b"\x5a" + body[-2:]) == "jpeg_corrupt", "may be a code"


@pytest.mark.parametrize("kind", SOUND)
def test_only_what_ends_early_is_truncated(kind):
    """A cut anywhere, also in a header and followed by zeros or a page; a length that points beyond
    a file which has its end is another fault.
    """
    good = SOUND[kind](1)
    thumbnail = segment(0xE1, EXIF + photo(9))
    for body in (good, good[:2] + thumbnail + good[2:]):
        for left in (2, 4, 21, behind(body, 0xC4) + 9, len(body) * 2 // 3, len(body) - 1):
            assert verdict(body[:left]) == "jpeg_truncated", left
            assert verdict(body[:left] + bytes(500)) in ("jpeg_truncated", "jpeg_corrupt")
        assert verdict(body[:-2]) == "jpeg_truncated"
        assert verdict(body[: len(body) * 2 // 3] + bytes(5000)) == "jpeg_truncated"
        assert verdict(body[: len(body) * 2 // 3] + b"<html>" * 50) == "jpeg_truncated"
    beyond = segment(0xE1, EXIF)[:2] + b"\xff\xf0" + EXIF
    assert verdict(good[:2] + beyond + good[2:]) == "jpeg_corrupt"
    assert verdict(good[:2] + beyond + good[2:] + b"\r\n") == "jpeg_corrupt"
    assert verdict(FAULTS["ICC: 2 of 1"](good)[:-2]) == "jpeg_truncated"
    assert verdict(b"\xff\xd8" + b"<html>" * 50) == "jpeg_corrupt"
    assert verdict(b"\xff\xd8" + bytes(500)) == "jpeg_corrupt"


def test_two_components_are_named_as_corrupt():
    body = written(0, [(1, 1), (1, 1)]) + b"tail"
    assert verdict(body) == "jpeg_corrupt"


def test_a_hundred_scans_are_enough():
    """Known before anything is decoded; a scan behind the end is none."""
    assert SCANS == 100 and verdict(of_scans(SCANS)) == ""
    for body in (of_scans(SCANS + 1), of_scans(883), of_scans(883) + b"end"):
        with pytest.raises(BadSample) as bad:
            decode_image(body)
        assert bad.value.reason == "image_scans" and "scans" in bad.value.detail
    assert verdict(of_scans(60) + of_scans(60)) == ""
    sequential_scans = written(0, [(2, 2), (1, 1), (1, 1)], apart=True)
    at, end = behind(sequential_scans, 0xDA), len(sequential_scans) - 2
    many = sequential_scans[:at] + sequential_scans[at:end] * 40 + b"\xff\xd9"
    assert verdict(many) == "image_scans"
