"""What a JPEG says of itself: segments and frame, read without decoding anything, and the same
file without the faults of its headers that change no pixel.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

EOI, SOS, DHT, DRI, JFIF, ADOBE = 0xD9, 0xDA, 0xC4, 0xDD, 0xE0, 0xEE
FRAMES = frozenset({*range(0xC0, 0xD0)} - {DHT, 0xC8, 0xCC})
SEQUENTIAL = frozenset({0xC0, 0xC1})  # Huffman coded
PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
BARE = frozenset({0x00, 0x01, *range(0xD0, 0xD8)})  # no length stands behind them
PASSED_OVER = frozenset({*range(0xE0, 0xF0), 0xFE})  # applications' segments and comments
AFTER_CODED = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
WHITE = b"\x00\t\n\r "


class Segment(NamedTuple):
    """A marker with what its length spans, body[start:end] behind the length itself."""

    marker: int
    start: int
    end: int


class Frame(NamedTuple):
    """What the header says. sampling: (horizontal, vertical) a component; apart: the first scan
    lacks components, so that all coefficients are kept until the last.
    """

    marker: int
    height: int
    width: int
    sampling: tuple[tuple[int, int], ...]
    apart: bool
    at: int  # where it begins in the file, behind its length

    @property
    def progressive(self) -> bool:
        return self.marker in PROGRESSIVE

    def own_blocks(self, component: int) -> tuple[int, int]:
        """(rows, columns) of 8 x 8 blocks of a component in a scan of its own."""
        h, v = self.sampling[component]
        tall, wide = max(v for _, v in self.sampling), max(h for h, _ in self.sampling)
        return -(-self.height * v // (8 * tall)), -(-self.width * h // (8 * wide))

    def units(self) -> tuple[int, int]:
        """(rows, columns) of the frame's units, in which each component has h x v blocks."""
        tall, wide = max(v for _, v in self.sampling), max(h for h, _ in self.sampling)
        return -(-self.height // (8 * tall)), -(-self.width // (8 * wide))

    def coefficients(self) -> int:
        """Bytes of the coefficients that a decoder keeps until the last scan; 0 for one scan."""
        if not (self.progressive or self.apart):
            return 0
        rows, columns = self.units()
        return 128 * rows * columns * sum(h * v for h, v in self.sampling)


def segments(body: bytes) -> Iterator[Segment]:
    """The segments in their order, passing over stray bytes between them and over coded data;
    EOI is the last where it is there. One that reaches beyond the file has its end there.
    """
    at, n = 2, len(body)
    while 0 <= (at := body.find(b"\xff", at)) < n:
        while at < n and body[at] == 0xFF:
            at += 1
        if at == n:
            return
        marker = body[at]
        at += 1
        if marker in BARE:
            continue
        if marker == EOI:
            yield Segment(marker, at, at)
            return
        end = at + max(2, int.from_bytes(body[at : at + 2], "big"))
        yield Segment(marker, at + 2, end)
        if end > n:
            return
        at = end
        if marker == SOS:
            behind = AFTER_CODED.search(body, end)
            at = behind.start() if behind else n


def frame_of(body: bytes) -> Frame | None:
    """The frame, or None where no sound one stands in front of the first scan."""
    found: Segment | None = None
    for s in segments(body):
        if s.end > len(body):
            return None
        if s.marker in FRAMES:
            found = s
        if s.marker == SOS:
            break
    else:
        return None
    if found is None or found.end - found.start < 6:
        return None
    count = body[found.start + 5]
    if not 1 <= count <= 4 or found.end - found.start < 6 + 3 * count or s.end == s.start:
        return None
    factors = (body[found.start + 7 + 3 * k] for k in range(count))
    sampling = tuple((x >> 4, x & 15) for x in factors)
    if not all(1 <= h <= 4 and 1 <= v <= 4 for h, v in sampling):
        return None
    height, width = (int.from_bytes(body[found.start + i :][:2], "big") for i in (1, 3))
    apart = body[s.start] < count
    return Frame(found.marker, height, width, sampling, apart, found.start)


def scans(body: bytes, most: int) -> int:
    """How many scans a JPEG has. Walks the segments only where there could be more than `most`."""
    bound = body.count(b"\xff\xda")
    if bound <= most:
        return bound
    return sum(s.marker == SOS for s in segments(body))


def ends_early(body: bytes) -> bool:
    """Whether a JPEG that does not decode was cut: no end of image follows its last segment."""
    if body[2:3] not in (b"", b"\xff"):
        return False  # nothing of a JPEG stands behind its first two bytes
    found = list(segments(body))
    if not found:
        return True
    last = found[-1]
    if last.marker == EOI:
        return False
    # a length that is wrong, and not a cut, where the end of image is in its place
    return not (last.end > len(body) and body.rstrip(WHITE).endswith(b"\xff\xd9"))


def plain(body: bytes, frame: Frame) -> bytes:
    """The same picture without what strict decoding refuses and no pixel depends on: profiles,
    EXIF and comments, bytes between the headers, revisions and parameters that decoders pass over.

    From the first scan's coded data on nothing is changed.
    """
    parts = [b"\xff\xd8"]
    for s in segments(body):
        payload = body[s.start : s.end]
        if s.marker == JFIF and payload[:5] == b"JFIF\x00" and len(payload) >= 14:
            payload = payload[:5] + b"\x01\x01" + payload[7:]
        elif s.marker == ADOBE and payload[:5] == b"Adobe" and len(payload) >= 12:
            # what decoders take for a transform that they do not know
            known = {3: (0, 1), 4: (0, 2)}.get(len(frame.sampling), range(256))
            if payload[11] not in known:
                payload = payload[:11] + bytes([known[1]]) + payload[12:]
        elif s.marker in PASSED_OVER:
            continue
        elif s.marker == SOS and frame.marker in SEQUENTIAL:
            payload = payload[:-3] + b"\x00\x3f\x00"
        parts += [b"\xff", bytes([s.marker]), (len(payload) + 2).to_bytes(2, "big"), payload]
        if s.marker == SOS:
            parts.append(body[s.end :])
            break
    return b"".join(parts)


def without_padding(body: bytes, stray: int, most: int) -> bytes | None:
    """The same JPEG without `stray` bytes between the coded data of its last scan and its end, or
    None where these are no padding.

    Padding is white space or a run of one byte, three of them at least and `most` at most. Coded
    data that were lost and overwritten look the same, but some of the run was used, so that it is
    longer than what is left.
    """
    coded = max((s.end for s in segments(body) if s.marker == SOS), default=len(body))
    behind = AFTER_CODED.search(body, coded)
    if behind is None or behind.group()[-1] != EOI:
        return None
    data = body[coded : behind.start()].rstrip(b"\xff")
    tail = data[len(data) - stray :]
    if tail.strip(WHITE) and (stray < 3 or tail.strip(tail[:1])):
        return None
    run = len(data) - len(data.rstrip(tail))
    if not stray <= run <= most:
        return None
    return body[:coded] + data[: len(data) - stray] + b"\xff\xd9"
