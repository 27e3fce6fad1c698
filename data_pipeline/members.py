"""What a sample's members say, each with its limits:
the image's bytes, the caption, the class, the JSON.

`Placed` hands on where a recipe says that captions and labels stand.
"""

import codecs
import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from vtx_scale.data_pipeline.errors import BadSample, notes
from vtx_scale.data_pipeline.read import Draw, Members, Row
from vtx_scale.data_pipeline.tar import IMAGES

VIDEOS = ("mp4", "webm", "mkv")  # what a video is its bytes say
CAPTIONS = ("txt", "cap")
TEXTS = (*CAPTIONS, "json", "cls")
TEXT_LIMIT = 64 << 10
JSON_LIMIT = 1 << 20
CLASS_LIMIT = 4 << 10  # bytes of the words that name classes
DEPTH = 50
LABEL_LIMIT = 1 << 31
CAPTION_VIEW = 1 << 11  # whose random number chooses one of several captions
# no member of a tar has such a name
CAPTION, LABEL = "__caption__", "__label__"
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}


class AnyReader(Protocol):
    """What `Placed` wraps: see `batches.Reader`."""

    def __call__(self, members: Members, draw: Draw) -> Row:
        """A sample's arrays. Raises BadSample."""

    def blank(self) -> Row:
        """A masked slot's."""


@dataclass
class Placed:
    """A reader of samples whose captions or labels stand elsewhere: `data.caption`, `data.label`.

    caption, label: the extension of a member, or a path in the JSON, such as `meta.captions.0`;
    "" is where they always stand.
    """

    reader: AnyReader
    caption: str = ""
    label: str = ""

    def blank(self) -> Row:
        """The reader's."""
        return self.reader.blank()

    def __call__(self, members: Members, draw: Draw) -> Row:
        """The reader's arrays of a sample. Raises BadSample as it does."""
        given = {CAPTION: self.caption, LABEL: self.label}
        return self.reader(Members({**members, **{k: v for k, v in given.items() if v}}), draw)


def image(members: Mapping[str, Any]) -> bytes:
    """The bytes of the picture. Raises BadSample member_missing."""
    return first_of(members, IMAGES, "image")


def video(members: Mapping[str, Any]) -> bytes:
    """The bytes of the video. Raises BadSample member_missing."""
    return first_of(members, VIDEOS, "video")


def first_of(members: Mapping[str, Any], extensions: Iterable[str], what: str) -> bytes:
    for extension in extensions:
        if extension in members:
            body: bytes = members[extension]
            return body
    raise BadSample("member_missing", what)


def decoded(body: bytes, errors: str = "strict") -> str:
    """UTF-8, or what a byte order mark at the beginning says, without that mark."""
    encoding = next((name for mark, name in MARKS.items() if body.startswith(mark)), "utf-8")
    return body.decode(encoding, errors)


def text(body: bytes) -> str:
    """UTF-8 (or what a byte order mark says), cut at 64 KiB; what is none is replaced and counted.

    Raises BadSample text where nothing of it can be seen.
    """
    whole = len(body) <= TEXT_LIMIT
    if not whole:
        notes["text_cut"] += 1
    encoding = next((name for mark, name in MARKS.items() if body.startswith(mark)), "utf-8")
    try:
        # what is cut within a letter ends in front of it
        out = codecs.getincrementaldecoder(encoding)().decode(body[:TEXT_LIMIT], whole)
    except UnicodeDecodeError:
        notes["text_replaced"] += 1
        out = decoded(body[:TEXT_LIMIT], "replace")
    # marks of direction, joints of no width and zeros are no text either
    if all(c.isspace() or c == "\0" or unicodedata.category(c) == "Cf" for c in out):
        raise BadSample("text", "empty")
    return out


def about(members: Mapping[str, Any], name: str = "json") -> Any:
    """The value of a JSON member. Raises BadSample member_missing or json."""
    if name not in members:
        raise BadSample("member_missing", name)
    if len(members[name]) > JSON_LIMIT:
        raise BadSample("json", "more than 1 MiB")
    try:
        value = json.loads(members[name])
    except (ValueError, RecursionError) as e:
        raise BadSample("json", type(e).__name__) from None
    level = [value]
    for _ in range(DEPTH):
        level = [
            x
            for v in level
            if isinstance(v, dict | list)
            for x in (v.values() if isinstance(v, dict) else v)
        ]
        if not level:
            return value
    raise BadSample("json", f"nested more than {DEPTH} deep")


def at(value: Any, names: list[str]) -> Iterator[Any]:
    """What stands at a path in a JSON value: keys (which may hold dots) and places in lists;
    a key behind a list is looked for in each of its values.
    """
    if not names:
        yield from value if isinstance(value, list) else [value]
    elif isinstance(value, list):
        if names[0].isdecimal():
            for inner in value[int(names[0]) :][:1]:
                yield from at(inner, names[1:])
        else:
            for inner in value:
                yield from at(inner, names)
    elif isinstance(value, dict):
        for n in range(len(names), 0, -1):
            if (key := ".".join(names[:n])) in value:
                yield from at(value[key], names[n:])
                return


def values(members: Mapping[str, Any], place: str) -> list[Any]:
    """What stands at a place: the bytes of a member, else values of the JSON.

    `meta.json.captions` is a path in the member `meta.json`; a path alone is one in `json`.

    Raises BadSample json.
    """
    names = place.split(".")
    for n in range(len(names), 0, -1):
        member = ".".join(names[:n]).lower()
        if member in members and n == len(names):
            return [members[member]]
        if member in members and names[n - 1].lower() == "json":
            return list(at(about(members, member), names[n:]))
    return list(at(about(members), names)) if "json" in members else []


def texts(found: list[Any], where: str) -> list[str]:
    """Captions of values, without empty ones.

    Raises BadSample member_missing where there is no string, text where all are empty.
    """
    bodies = [
        x.encode("utf-8", "replace") if isinstance(x, str) else x
        for x in found
        if isinstance(x, str | bytes)
    ]
    if not bodies:
        raise BadSample("member_missing", where)
    out, empty = [], None
    for body in bodies:
        try:
            out.append(text(body))
        except BadSample as e:
            empty = e
    if empty is not None and not out:
        raise empty
    return out


def several(members: Mapping[str, Any]) -> list[str]:
    """A sample's captions: those at `data.caption`, else txt, cap, "caption" and "captions" of the
    JSON, the first that is not empty.

    Raises BadSample member_missing, text or json.
    """
    place = members.get(CAPTION)
    if isinstance(place, str):
        return texts(values(members, place), place)
    empty = None
    for name in CAPTIONS:
        if name in members:
            try:
                return [text(members[name])]
            except BadSample as e:
                empty = e
    if "json" not in members:
        raise empty or BadSample("member_missing", "text")
    value = about(members)
    for name in ("caption", "captions"):
        found = list(at(value, [name])) if isinstance(value, dict) else []
        try:
            return texts(found, "caption in json")
        except BadSample as e:
            empty = empty or (e if e.reason == "text" else None)
    raise empty or BadSample("member_missing", "caption in json")


def caption(members: Mapping[str, Any], draw: Draw | None = None) -> str:
    """txt, else cap, else "caption" of the JSON, or what stands at `data.caption`.

    Of several the first, or one at random where `draw` is given. Raises BadSample member_missing,
    text or json.
    """
    found = several(members)
    if draw is None or len(found) == 1:
        return found[0]
    return found[int(draw(CAPTION_VIEW, 1)[0] * len(found))]


def captions(members: Mapping[str, Any]) -> list[str]:
    """All of a sample's: "captions" of the JSON where there is such a list, else as `caption`.

    Raises as `caption` does.
    """
    body = members.get("json", b"")
    if CAPTION not in members and (b'"captions"' in body or body[:1] in (b"\xff", b"\xfe", b"\0")):
        value = about(members)
        found = value.get("captions") if isinstance(value, dict) else None
        if isinstance(found, list) and found and all(isinstance(x, str) for x in found):
            return texts(found, "captions in json")
    return several(members)


def numbers(members: Mapping[str, Any]) -> list[Any]:
    """The words that name classes: those of `cls`, or what stands at `data.label`.

    Raises BadSample label beyond 4 KiB, json.
    """
    place = members.get(LABEL)
    found: list[Any] = values(members, place) if isinstance(place, str) else []
    if place is None and "cls" in members:
        found = [members["cls"]]
    if any(isinstance(x, str | bytes) and len(x) > CLASS_LIMIT for x in found):
        raise BadSample("label", "more than 4 KiB")
    return found


def label(members: Mapping[str, Any]) -> int:
    """The class number, -1 where there is none.

    Raises BadSample label for what is no number below 2^31.
    """
    found = numbers(members)
    if len(found) > 1:
        raise BadSample("label", f"{len(found)} labels")
    return number(found[0]) if found else -1


def labels(members: Mapping[str, Any]) -> list[int]:
    """The class numbers of a sample that may have several, apart by blanks or commas;
    [] where there is none.

    Raises BadSample label for what is no number below 2^31.
    """
    out = []
    for found in numbers(members):
        if isinstance(found, str):
            found = found.encode("utf-8", "replace")
        words = plain(found).replace(b",", b" ").split() if isinstance(found, bytes) else [found]
        out += [number(word) for word in words]
    return out


def plain(body: bytes) -> bytes:
    """A short text without its byte order mark."""
    marked = any(body.startswith(mark) for mark in MARKS)
    return decoded(body, "replace").encode("utf-8", "replace") if marked else body


def number(word: Any) -> int:
    """The class that digits or a number of the JSON name. Raises BadSample label."""
    if isinstance(word, int) and not isinstance(word, bool) and 0 <= word < LABEL_LIMIT:
        return word
    if isinstance(word, str):
        word = word.encode("utf-8", "replace")
    if isinstance(word, bytes):
        body = plain(word).strip()
        if body.isdigit() and len(body) <= 10 and int(body) < LABEL_LIMIT:
            return int(body)
        raise BadSample("label", repr(body[:20]))
    raise BadSample("label", repr(word)[:30])


def mask(members: Mapping[str, bytes]) -> bytes | None:
    """The bytes of the picture that says what is object (not 0), None where there is none."""
    return members.get("mask.png")
