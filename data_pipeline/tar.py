"""Walking tar headers without trusting them: nothing is extracted, no link followed,
no name opened.

ustar, GNU long names and PAX paths and sizes are read; a broken header is passed over to the
next valid one.
"""

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

BLOCK = 512
MEMBER_LIMIT = 64 << 20
EXTRA_LIMIT = 1 << 20  # bytes of an extended header
NAME_LIMIT = 4096
ZERO_RUN = 64 << 10  # zeros between members beyond what any writer pads with
RECORD = 10_240  # what writers pad to unless they are asked otherwise
RECORD_LIMIT = 64 << 10  # longer ones are rare, and an end that never came looks like them
FEW = 8  # bytes of a member that may be zeros by chance
ZEROS = bytes(BLOCK)
REGULAR, EXTENDED = b"0\x007", b"LKxg"
OCTAL = re.compile(rb"[0-7]+").fullmatch
ODD = re.compile(r"[\x00-\x1f\x7f]|^/|(?:^|/)\.\.(?:/|$)").search
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
# a picture is the first that is there, and what it is its bytes say
IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "jfif", "jpe", "img")
CODE = frozenset(("pyd", "pkl", "pickle", "pt", "pth"))  # what reads these runs what is in them


class Bytes(Protocol):
    """A memoryview, or a file that can be sliced like one."""

    def __len__(self) -> int: ...
    def __getitem__(self, part: slice) -> bytes | memoryview: ...


class Member(NamedTuple):
    """A regular file: where its headers begin, where its data lies."""

    name: str
    start: int  # first header block, extended headers included
    offset: int
    size: int
    cut: bool = False  # its data reaches beyond the end of the shard


class Problem(NamedTuple):
    """Something wrong at `offset`; see the detection table (docs/data.md)."""

    reason: str
    offset: int
    detail: str = ""


def number(field: bytes) -> int | None:
    """An octal or base-256 number of a header; None where it is neither or negative."""
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big") if field[0] == 0x80 else None
    text = field.partition(b"\0")[0].strip()
    if not text:
        return 0
    return int(text, 8) if OCTAL(text) else None


def sound(header: bytes) -> bool:
    """Whether the checksum of a header block holds."""
    stored = number(header[148:156])
    # the low half of an Adler-32 is 1 + the sum of up to 256 bytes: ten times as fast as sum()
    total = (zlib.adler32(header[:256]) & 0xFFFF) + (zlib.adler32(header[256:]) & 0xFFFF) - 2
    return stored is not None and stored == total - sum(header[148:156]) + 256


def pax(body: bytes) -> dict[str, str]:
    """The records of an extended header; it ends at the first that is malformed."""
    out, at = {}, 0
    while (space := body.find(b" ", at, at + 20)) > 0:
        digits = body[at:space]
        end = at + int(digits) if digits.isdigit() else 0
        if end <= space + 1 or body[end - 1 : end] != b"\n":
            break
        key, _, value = body[space + 1 : end - 1].partition(b"=")
        out[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        at = end
    return out


def next_header(data: Bytes, at: int) -> int:
    """The next block from `at` on that is a valid ustar header, else the end."""
    last = len(data)
    while at + BLOCK <= last:
        block = bytes(data[at : at + BLOCK])
        if block[257:262] == b"ustar" and sound(block):
            return at
        at += BLOCK
    return last


def announced(
    kind: bytes, extra: bytes, name: str | None, size: int | None, sparse: bool
) -> tuple[str | None, int | None, bool]:
    """What an extended header says of the member behind it:
    its name, its size, whether it is sparse.
    """
    if kind == b"L":
        name = extra.partition(b"\0")[0].decode("utf-8", "surrogateescape")
    elif kind == b"x":
        records = pax(extra)
        name = records.get("path", name)
        digits = records.get("size", "")
        size = int(digits) if digits.isascii() and digits.isdigit() else size
        sparse = any(x.startswith("GNU.sparse.") for x in records)
    return name, size, sparse


def ustar_name(header: bytes) -> str:
    """The name in a header block, with its prefix where POSIX has one."""
    raw = header[:100].partition(b"\0")[0]
    if header[345] and header[257:263] == b"ustar\0":
        raw = header[345:500].partition(b"\0")[0] + b"/" + raw
    return raw.decode("utf-8", "surrogateescape")


def behind_special(data: Bytes, header: bytes, body: int, after: int) -> int:
    """Where the next header stands behind a member that is no regular file,
    whose data by its size are body .. after.
    """
    kind = header[156:157]
    if kind in b"123456":  # they have no data, whatever their size says
        return body
    if kind == b"S" and header[482]:  # more blocks of a sparse map come before the data
        more = body
        while more + BLOCK <= len(data) and data[more + 504 : more + 505] != b"\0":
            more += BLOCK
        return after + more + BLOCK - body
    return after


def tail(data: Bytes, at: int, zeros: int, before: Member | None) -> Iterator[Problem]:
    """What is wrong at the end of a shard: less than a block from `at` on,
    `zeros` bytes of zeros before it, and before these the data of a member.

    Two blocks of zeros end a tar, and a writer fills its last record with more. What is longer may
    be a download whose end never came: `tar_zeros`, which long records give too.
    """
    last = len(data)
    if at < last and any(data[at:last]):
        yield Problem("tar_tail", at, f"{last - at} bytes at the end are no member")
        return
    start, zeros = at - zeros, zeros + last - at
    if not start and zeros > RECORD:
        yield Problem("tar_tail", 0, f"nothing but {zeros} zero bytes: was it downloaded?")
    elif zeros >= 3 * BLOCK and not any(
        last % record == 0 and zeros < record + 2 * BLOCK
        for record in range(BLOCK, RECORD_LIMIT + 1, BLOCK)
    ):
        yield Problem(
            "tar_zeros", start, f"{zeros} zero bytes at the end: was the download finished?"
        )
    elif before is not None and zeros and before.size >= FEW and not before.cut:
        end = before.offset + before.size
        if not any(data[max(before.offset, end - BLOCK) : end]):
            name = before.name[:100]
            yield Problem(
                "tar_zeros", start, f"{name} and the shard end in zeros: was the download finished?"
            )


def walk(data: Bytes) -> Iterator[Member | Problem]:
    """Members and problems in order.

    data is a whole shard, or a part from the start of one sample to the start of another: what is
    decided about a member depends on bytes of the same part, and so is as in the whole.
    """
    last = len(data)
    at, start, zeros = 0, -1, 0
    before: Member | None = None  # what the last header gave
    name: str | None = None
    size: int | None = None
    sparse = False
    while at + BLOCK <= last:
        header = bytes(data[at : at + BLOCK])
        if header == ZEROS:
            at += BLOCK  # end blocks; concatenated tars go on behind them
            zeros += BLOCK
            start, name, size, sparse = -1, None, None, False
            continue
        if zeros > ZERO_RUN:
            yield Problem("tar_header", at - zeros, f"{zeros} zero bytes between members")
        zeros, before = 0, None
        kind, length = header[156:157], number(header[124:136])
        body = at + BLOCK
        extended = kind in EXTENDED
        broken = length is None or not sound(header)
        if not broken and kind not in REGULAR:
            broken = body + (length or 0) > last or (extended and (length or 0) > EXTRA_LIMIT)
        if broken or length is None:  # the second for the type checker
            gap, at = at, next_header(data, body)
            yield Problem("tar_header", gap, f"{at - gap} bytes passed over")
            start, name, size, sparse = -1, None, None, False
            continue
        if start < 0:
            start = at
        if extended:
            extra = bytes(data[body : body + length])
            name, size, sparse = announced(kind, extra, name, size, sparse)
            at = body + -(-length // BLOCK) * BLOCK
            continue
        if name is None:
            name = ustar_name(header)
        length = length if size is None else size
        at = body + -(-length // BLOCK) * BLOCK
        if kind not in REGULAR or sparse:
            at = behind_special(data, header, body, at)
            if kind != b"5":
                yield Problem("member_type", start, f"{name} has type {kind!r}")
        else:
            cut = body + length > last
            if ODD(name) or len(name) > NAME_LIMIT:
                yield Problem("member_name", start, name[:100])
            before = Member(name, start, body, length, cut)
            if len(name) <= NAME_LIMIT:
                yield before
            if cut:
                yield Problem("tar_truncated", start, name[:100])
                at = next_header(data, body)  # a size that lies hides sound members behind it
        start, name, size, sparse = -1, None, None, False
    yield from tail(data, at, zeros, before)


def split_name(name: str) -> tuple[str, str] | None:
    """(key, extension in lower case) at the first dot of the base name;
    None for what belongs to no sample.

    The rule is webdataset's, `^((?:.*/|)[^.]+)[.]([^/]*)$` and not `__[^/]*__($|/)`,
    without its backtracking.
    """
    folder, slash, base = name.rpartition("/")
    if name.startswith("__"):
        first = name.partition("/")[0]
        if len(first) > 3 and first.endswith("__"):
            return None
    stem, dot, extension = base.partition(".")
    if not dot:
        return None
    if stem:
        return folder + slash + stem, extension.lower()
    inner = folder.rpartition("/")[2]
    # a base name that begins with a dot: the folder is the key, where it has no dot itself
    return (folder + slash, extension.lower()) if slash and "." not in inner else None


@dataclass(slots=True)
class Sample:
    """Consecutive members with one key."""

    key: str
    start: int
    members: dict[str, tuple[int, int]]  # extension -> (offset, size)
    reason: str = ""  # why it cannot be used, known from the headers
    end: int = 0  # of its last member's data
    reserved: tuple[str, ...] = ()  # extensions that are passed over: they would be taken for ours


def samples(data: Bytes) -> Iterator[Sample | Problem]:
    """Samples in tar order, and problems where they lie.

    Members that hold code, and those whose extension begins as `__key__` does, belong to no
    sample's members.
    """
    now: Sample | None = None
    for item in walk(data):
        if isinstance(item, Problem):
            yield item
            continue
        name, start, offset, size, cut = item
        parts = split_name(name)
        if parts is None:
            if "." not in name.rpartition("/")[2]:
                yield Problem("member_nameless", start, f"{name[:100]} is not KEY.EXTENSION")
            continue
        key, extension = parts
        repeated = (
            now is not None
            and now.key == key
            and (extension in now.members or extension in now.reserved)
        )
        if now is None or now.key != key or repeated:
            if now is not None:
                yield now
            if repeated:
                yield Problem("member_repeated", start, name)
            now = Sample(key, start, {})
        now.end = offset + size
        if extension.startswith("__"):
            now.reserved += (extension,)
            yield Problem("member_ignored", start, name)
            continue
        if not CODE.isdisjoint(extension.split(".")):
            yield Problem("member_ignored", start, name)
            continue
        now.members[extension] = (offset, size)
        if cut:
            now.reason = "tar_truncated"
        elif size > MEMBER_LIMIT:
            now.reason = now.reason or "member_size"
        elif not size and extension in IMAGES:
            now.reason = now.reason or "empty"
    if now is not None:
        yield now
