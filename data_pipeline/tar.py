"""Walking tar headers without trusting them: nothing is extracted, no link followed, no name opened.

ustar, GNU long names and PAX paths and sizes are read; a broken header is passed over to the next valid one.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

BLOCK = 512
MEMBER_LIMIT = 64 << 20
NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$", re.S)
HIDDEN = re.compile(r"__[^/]*__($|/)")
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file: where its headers begin, where its data lies."""

    name: str
    start: int  # first header block, extended headers included
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong at `offset`; see the detection table (docs/data.md)."""

    reason: str
    offset: int
    detail: str = ""


def number(field: bytes) -> int | None:
    """An octal or base-256 number of a header; None where it is neither."""
    if field[0] & 0x80:
        value = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
        return None if field[0] == 0xFF else value
    text = field.split(b"\0")[0].strip()
    if not text:
        return 0
    try:
        return int(text, 8)
    except ValueError:
        return None


def sound(header: bytes) -> bool:
    """Whether the checksum of a header block holds."""
    said = number(header[148:156])
    return said is not None and said == sum(header[:148]) + 256 + sum(header[156:])


def pax(body: bytes) -> dict[str, str]:
    out = {}
    while body:
        length, _, rest = body.partition(b" ")
        if not length.isdigit() or int(length) <= len(length) + 1:
            break
        record, body = rest[: int(length) - len(length) - 2], body[int(length) :]
        key, _, value = record.partition(b"=")
        out[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
    return out


def walk(data: memoryview, whole: bool = True) -> Iterator[Member | Problem]:
    """Members and problems of a tar (or of a run of whole members) in order.

    whole: the bytes are a file; a member that reaches beyond the end is yielded and reported as `tar_truncated`.
    """
    at, end, start = 0, len(data), -1
    name, size = None, None
    while at + BLOCK <= end:
        header = bytes(data[at : at + BLOCK])
        if not any(header):
            at += BLOCK  # end blocks; concatenated tars go on behind them
            start, name, size = -1, None, None
            continue
        length = number(header[124:136])
        if not sound(header) or length is None or (length > end and header[156:157] not in b"0\0"):
            gap = at
            at += BLOCK
            while at + BLOCK <= end and not (data[at + 257 : at + 262] == b"ustar" and sound(bytes(data[at : at + BLOCK]))):
                at += BLOCK
            yield Problem("tar_header", gap, f"{at - gap} bytes passed over")
            start, name, size = -1, None, None
            continue
        kind = header[156:157]
        if start < 0:
            start = at
        body = at + BLOCK
        if kind in (b"L", b"x", b"g", b"K"):
            extra = bytes(data[body : body + length])
            if kind == b"L":
                name = extra.split(b"\0")[0].decode("utf-8", "surrogateescape")
            elif kind == b"x":
                fields = pax(extra)
                name = fields.get("path", name)
                size = int(fields["size"]) if fields.get("size", "").isdigit() else size
            at = body + -(-length // BLOCK) * BLOCK
            continue
        if name is None:
            prefix = header[345:500].split(b"\0")[0] if header[257:263] == b"ustar\0" else b""
            short = header[:100].split(b"\0")[0]
            name = (prefix + b"/" + short if prefix else short).decode("utf-8", "surrogateescape")
        length = size if size is not None else length
        if kind in (b"0", b"\0", b"7"):
            yield Member(name, start, body, length)
            if body + length > end and whole:
                yield Problem("tar_truncated", start, name)
                return
        elif kind != b"5":
            yield Problem("member_type", start, f"{name} has type {kind!r}")
            length = 0 if kind in b"123456" else length
        at = body + -(-length // BLOCK) * BLOCK
        start, name, size = -1, None, None
    if whole and at < end and any(data[at:end]):
        yield Problem("tar_tail", at, f"{end - at} bytes at the end are no member")


def split_name(name: str) -> tuple[str, str] | None:
    """(key, extension in lower case) at the first dot of the base name; None for what belongs to no sample."""
    if HIDDEN.search(name):
        return None
    match = NAME.match(name)
    return (match[1], match[2].lower()) if match else None


@dataclass(slots=True)
class Sample:
    """Consecutive members with one key."""

    key: str
    start: int
    members: dict[str, tuple[int, int]]  # extension -> (offset, size)
    reason: str = ""  # why it cannot be used, known from the headers


def samples(data: memoryview, whole: bool = True) -> Iterator[Sample | Problem]:
    """Samples in tar order, and problems where they lie."""
    now: Sample | None = None
    for item in walk(data, whole):
        if isinstance(item, Problem):
            if item.reason == "tar_truncated" and now is not None:
                now.reason = "tar_truncated"
            yield item
            continue
        parts = split_name(item.name)
        if parts is None:
            continue
        key, extension = parts
        repeated = now is not None and now.key == key and extension in now.members
        if now is None or now.key != key or repeated:
            if now is not None:
                yield now
            if repeated:
                yield Problem("member_repeated", item.start, item.name)
            now = Sample(key, item.start, {})
        now.members[extension] = (item.offset, item.size)
        if item.size > MEMBER_LIMIT:
            now.reason = "member_size"
    if now is not None:
        yield now
