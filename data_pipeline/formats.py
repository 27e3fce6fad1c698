"""Formats of files by their first bytes: the names of those that are not read, and the size of a
picture where asking its decoder would already take memory.
"""

import re

FIRST = (
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"II\xbc\x01", "JPEG XR"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "BigTIFF"),
    (b"MM\x00+", "BigTIFF"),
    (b"8BPS", "PSD"),
    (b"gimp xcf", "XCF"),
    (b"\x00\x00\x01\x00", "ICO"),
    (b"icns", "ICNS"),
    (b"\x8aMNG", "MNG"),
    (b"qoif", "QOI"),
    (b"BPG\xfb", "BPG"),
    (b"FLIF", "FLIF"),
    (b"DDS ", "DDS"),
    (b"v/1\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"SIMPLE  =", "FITS"),
    (b"AT&TFORM", "DjVu"),
    (b"%PDF", "PDF"),
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"\x1aE\xdf\xa3", "video (Matroska or WebM)"),
    (b"\x00\x00\x01\xba", "video (MPEG)"),
    (b"\x00\x00\x01\xb3", "video (MPEG)"),
    (b"FLV\x01", "video (FLV)"),
    (b"OggS", "video or sound (Ogg)"),
    (b"0&\xb2u\x8ef\xcf\x11", "video or sound (ASF)"),
    (b"ID3", "sound (MP3)"),
    (b"fLaC", "sound (FLAC)"),
    (b"\x93NUMPY", "NumPy array"),
    (b"PAR1", "Parquet"),
    (b"\x89HDF", "HDF5"),
    (b"\x00\x05\x16\x07", "AppleDouble (a ._ file of macOS)"),
    (b"PK\x03\x04", "zip"),
    (b"\x1f\x8b", "gzip"),
    (b"version https://git-lfs", "git-lfs pointer: fetch the file itself"),
    (b"data:image/", "data URL: decode its base64"),
    (b"/9j/", "base64 of a JPEG: decode it"),
    (b"iVBORw0KGgo", "base64 of a PNG: decode it"),
)
BRANDS = (
    (b"avif", "AVIF"),
    (b"avis", "AVIF"),
    (b"hei", "HEIC"),
    (b"hev", "HEIC"),
    (b"mif1", "HEIF"),
    (b"msf1", "HEIF"),
    (b"jxl", "JPEG XL"),
    (b"jp2", "JPEG 2000"),
    (b"crx", "camera raw file (CR3)"),
    (b"qt", "video (QuickTime)"),
)
MARKUP = (
    (re.compile(rb"<svg\b"), "SVG"),
    (re.compile(rb"<!doctype html|<html|<head|<body"), "HTML page"),
    (re.compile(rb"^<\?xml"), "XML"),
    (re.compile(rb'^\{\s*"|^\[\s*[\[{"]'), "JSON"),
)
BEGINNING = 1024


def kind_of(body: bytes) -> str:
    """What a file that is not read is: `AVIF`, `HTML page`; else its first bytes in hex."""
    for first, name in FIRST:
        if body.startswith(first):
            return name
    if body[4:8] == b"ftyp":
        brands = body[8:12] + body[16 : max(16, min(64, int.from_bytes(body[:4], "big")))]
        for brand, name in BRANDS:
            if any(brands[i : i + 4].startswith(brand) for i in range(0, len(brands), 4)):
                return name
        return "video (MP4)"
    if body[:4] == b"RIFF":
        return f"RIFF of {body[8:12].decode('latin-1')!r}"
    if re.match(rb"P[1-7]\s", body):
        return "PNM"
    start = body[:BEGINNING].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for pattern, name in MARKUP:
        if pattern.search(start):
            return name
    if not body[:BEGINNING].strip(b"\x00"):
        return "zeros"
    at = body[:BEGINNING].find(b"\xff\xd8\xff")
    if at > 0:
        return f"JPEG behind {at} other bytes"
    return f"begins with {body[:12].hex(' ')}"


def size_of(body: bytes) -> tuple[int, int] | None:
    """(height, width) that a WebP or GIF will have in memory, or None for what does not say.

    Their decoders in Pillow take memory for the whole canvas while they look at the header.
    """
    if body[:4] == b"GIF8":
        return size_of_gif(body)
    kind = body[12:16]
    if kind == b"VP8X" and len(body) >= 30:
        wide, high = (int.from_bytes(body[i : i + 3], "little") for i in (24, 27))
        return high + 1, wide + 1
    if kind == b"VP8L" and len(body) >= 25:
        bits = int.from_bytes(body[21:25], "little")
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    if kind == b"VP8 " and len(body) >= 30:
        wide, high = (int.from_bytes(body[i : i + 2], "little") & 0x3FFF for i in (26, 28))
        return high, wide
    return None


def size_of_gif(body: bytes) -> tuple[int, int] | None:
    """The screen, or what it takes to hold the first frame where that is larger."""
    if len(body) < 13:
        return None
    wide, high = (int.from_bytes(body[i : i + 2], "little") for i in (6, 8))
    at = 13 + (3 << (body[10] & 7) + 1 if body[10] & 128 else 0)
    while at < len(body) and body[at : at + 1] != b",":
        if body[at : at + 1] == b";":
            return None
        if body[at : at + 1] == b"!":  # an extension: blocks up to an empty one
            at += 2
            while at < len(body) and body[at]:
                at += 1 + body[at]
        at += 1
    x, y, w, h = (int.from_bytes(body[at + i : at + i + 2], "little") for i in (1, 3, 5, 7))
    return max(high, y + h), max(wide, x + w)
