"""JPEGs of which a crop can be decoded without the rest, by restart markers.

At a restart marker a decoder begins anew: what lies between two of them, an interval, is decoded
alone. `with_restarts` writes a JPEG anew, without loss, with an interval for some eight blocks of a
row, and puts a table of their lengths and a checksum of the file in front. `cut` takes the
intervals that hold a box out of such a file and puts them under a header of the smaller size: a
JPEG whose pixels are those of the whole, bit for bit. A file that is not as it was written has
another checksum and is not cut, so that damage outside a box does not go unseen.
"""

import re
import subprocess
import zlib

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from vtx_scale.data_pipeline import jpeg
from vtx_scale.data_pipeline.decode import Box, check, check_cost
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.jpeg import Frame

INTERVAL = 8  # blocks; more cut less closely, fewer take more bytes
TABLE = 0xE9  # an application's segment, which decoders pass over
NAME = b"vtx-restarts-1\x00"  # then the checksum, and a length of 2 bytes for each interval
LONGEST = 65533  # bytes of a segment behind its length
RESTART = re.compile(rb"\xff[\xd0-\xd7]")
SECONDS = 120.0  # for jpegtran, of one picture
# what of a header decoding depends on, beside frame, interval and scan
KEPT = frozenset({jpeg.JFIF, jpeg.ADOBE, 0xDB, jpeg.DHT, jpeg.DRI, jpeg.SOS})
NARROW = 5  # pixels, of which two pixels of a colour at half the width are less
SHARE = 0.85  # of the intervals: above it nothing is gained by the cutting
Cut = tuple[bytes, int, int, int, int]  # a JPEG, its top and left in the whole, height and width


def table_at(body: bytes) -> int:
    """Where the table's segment would begin: behind JFIF's, which is the first if it is there."""
    return 4 + int.from_bytes(body[4:6], "big") if body[2:4] == b"\xff\xe0" else 2


def has_table(body: bytes) -> bool:
    """Whether a JPEG says where its intervals lie; `cut` looks whether that still holds."""
    at = table_at(body)
    return body[at : at + 2] == bytes([0xFF, TABLE]) and body[at + 4 :][: len(NAME)] == NAME


def table_of(body: bytes) -> NDArray[np.int64] | None:
    """(n,) int64: the bytes of each interval, without the marker behind it. None where there is
    no table, or any byte of the file is another than when it was written.
    """
    if not has_table(body):
        return None
    at = table_at(body) + 4 + len(NAME)
    end = table_at(body) + 2 + int.from_bytes(body[table_at(body) + 2 :][:2], "big")
    if end > len(body) or checksum(body, at) != body[at : at + 4]:
        return None
    return np.frombuffer(body[at + 4 : end], ">u2").astype(np.int64)


def checksum(body: bytes, at: int) -> bytes:
    """CRC-32 of all but the four bytes at `at`, as these four bytes."""
    return zlib.crc32(memoryview(body)[at + 4 :], zlib.crc32(body[:at])).to_bytes(4, "big")


def unit(frame: Frame) -> tuple[int, int]:
    """(height, width) in pixels of what is coded at a time: a block of each component."""
    if len(frame.sampling) == 1:
        return 8, 8
    return 8 * max(v for _, v in frame.sampling), 8 * max(h for h, _ in frame.sampling)


def interval_of(columns: int) -> int:
    """Blocks of an interval: the divisor of those of a row that is, as a ratio, next to 8."""
    divisors = (n for n in range(1, columns + 1) if columns % n == 0)
    return min(divisors, key=lambda n: max(n / INTERVAL, INTERVAL / n))


def with_restarts(body: bytes) -> bytes:
    """The same picture with restart markers and their table: its pixels are equal, its metadata
    kept, a progressive one becomes sequential.

    The same bytes where that cannot be: no JPEG, one that does not decode strictly, or of more
    intervals than a table holds. Raises UserError where jpegtran is not installed.
    """
    frame = jpeg.frame_of(body) if body[:2] == b"\xff\xd8" else None
    if frame is None or table_of(body) is not None:
        return body
    try:
        check(frame.height, frame.width)
        check_cost(body, frame, 2 * 3 * (2 if len(frame.sampling) == 4 else 1))
        pixels = simplejpeg.decode_jpeg(body)
        columns = -(-frame.width // unit(frame)[1])
        written = rewritten(body, interval_of(columns))
        tabled = with_table(written) if written else b""
        same = tabled and np.array_equal(simplejpeg.decode_jpeg(tabled), pixels)
    except (MemoryError, UserError):
        raise
    except Exception:  # a BadSample, or what strict decoding says
        return body
    return tabled if same else body


def run_jpegtran(*arguments: str, body: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    """Raises UserError where it is not installed, subprocess.TimeoutExpired."""
    command = ["jpegtran", *arguments]
    try:
        return subprocess.run(command, input=body, capture_output=True, timeout=SECONDS)
    except FileNotFoundError:
        raise UserError(
            "Restart markers are written by jpegtran, which is not installed: "
            "apt-get install libjpeg-turbo-progs."
        ) from None


def jpegtran() -> str:
    """What it says of its version. Raises UserError where it is not installed."""
    said = run_jpegtran("-version")
    return (said.stderr or said.stdout).decode(errors="replace").partition("\n")[0].strip()


def rewritten(body: bytes, interval: int) -> bytes:
    """By jpegtran; empty where it finds fault. Raises UserError where there is none."""
    options = "-copy", "all", "-optimize", "-restart", f"{interval}B"
    try:
        done = run_jpegtran(*options, body=body)
    except subprocess.TimeoutExpired:
        return b""
    return b"" if done.returncode or done.stderr else done.stdout


def with_table(body: bytes) -> bytes:
    """A sequential JPEG of one scan with the table of its intervals in front; empty where there
    are too many, or one is too long.
    """
    scans = [s.end for s in jpeg.segments(body) if s.marker == jpeg.SOS]
    at = scans[-1]
    behind = jpeg.AFTER_CODED.search(body, at)
    if len(scans) > 1 or behind is None:
        return b""
    marks = [m.start() for m in RESTART.finditer(body, at, behind.start())]
    lengths = np.diff(np.array([at - 2, *marks, behind.start()])) - 2
    size = 2 + len(NAME) + 4 + 2 * len(lengths)
    if size > LONGEST or lengths.max() > 0xFFFF:
        return b""
    head = bytes([0xFF, TABLE]) + size.to_bytes(2, "big") + NAME
    table, to = lengths.astype(">u2").tobytes(), table_at(body)
    out = body[:to] + head + bytes(4) + table + body[to:]
    spot = to + len(head)
    return out[:spot] + checksum(out, spot) + out[spot + 4 :]


def header(body: bytes, frame: Frame) -> tuple[bytes, int, int, int]:
    """What decoding needs of a header; where in it height and width stand; the blocks of an
    interval; where the coded data begin in the file.
    """
    parts, spot, interval = [b"\xff\xd8"], 0, 0
    for s in jpeg.segments(body):
        if s.marker == jpeg.DRI:
            interval = int.from_bytes(body[s.start : s.end], "big")
        if s.start == frame.at:
            spot = sum(map(len, parts)) + 5
        if s.marker in KEPT or s.start == frame.at:
            parts.append(body[s.start - 4 : s.end])
        if s.marker == jpeg.SOS:
            break
    return b"".join(parts), spot, interval, s.end


def span(begin: int, end: int, by: int, size: int, limit: int) -> tuple[int, int]:
    """The first interval, and the one behind the last, of those that hold begin .. end and a pixel
    on each side; they are `size` pixels long and end at `limit`.
    """
    first, last = max(0, begin - by) // size, -(-min(limit, end + by) // size)
    # what is narrower than two pixels of a colour is brought up in another way
    while min(limit, last * size) - first * size < NARROW * by and (first or last * size < limit):
        first, last = max(0, first - 1), last + (not first)
    return first, last


def cut(body: bytes, frame: Frame, box: Box, by: int = 1) -> Cut | None:
    """A JPEG of the blocks that hold a box and a pixel around it, which upsampling looks at, and
    where it lies in the whole; None where the whole is to be decoded.

    box: in pixels of by x by of the picture's.
    """
    if not has_table(body):
        return None
    head, spot, interval, coded = header(body, frame)
    tall, wide = unit(frame)
    wide *= interval
    if not wide:
        return None
    rows, columns = -(-frame.height // tall), -(-frame.width // wide)
    y0, y1 = span(box[0] * by, (box[0] + box[2]) * by, by, tall, frame.height)
    x0, x1 = span(box[1] * by, (box[1] + box[3]) * by, by, wide, frame.width)
    if (y1 - y0) * (x1 - x0) > SHARE * rows * columns:
        return None
    lengths = table_of(body)
    if lengths is None or len(lengths) != rows * columns:
        return None
    starts = (coded + np.cumsum(lengths + 2) - lengths - 2).reshape(rows, columns)
    lengths = lengths.reshape(rows, columns)[y0:y1, x0:x1]
    begins, ends = starts[y0:y1, x0].tolist(), (starts[y0:y1, x1 - 1] + lengths[:, -1]).tolist()
    data = bytearray(b"\xff\xd0").join(body[a:b] for a, b in zip(begins, ends, strict=True))
    marks = np.cumsum(lengths.ravel() + 2)[:-1] - 1
    np.frombuffer(data, np.uint8)[marks] = 0xD0 + np.arange(len(marks)) % 8
    height = min(frame.height, y1 * tall) - y0 * tall
    width = min(frame.width, x1 * wide) - x0 * wide
    size = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    out = b"".join([head[:spot], size, head[spot + 4 :], data, b"\xff\xd9"])
    return out, y0 * tall, x0 * wide, height, width
