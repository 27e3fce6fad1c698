"""What a sample's members say, each with its limits:
the image's bytes, the caption, the class, the JSON.
"""

import json
from collections.abc import Mapping
from typing import Any

from vtx_scale.data_pipeline.errors import BadSample, notes

IMAGES = ("jpg", "jpeg", "png", "webp", "gif")  # the first that is there counts
TEXTS = ("txt", "json", "cls")
TEXT_LIMIT = 64 << 10
DEPTH = 50
LABEL_LIMIT = 1 << 31


def image(members: Mapping[str, bytes]) -> bytes:
    """The bytes of the picture. Raises BadSample member_missing."""
    for extension in IMAGES:
        if extension in members:
            return members[extension]
    raise BadSample("member_missing", "image")


def text(body: bytes) -> str:
    """UTF-8, cut at 64 KiB; what is no UTF-8 is replaced and counted.

    Raises BadSample text where it is empty.
    """
    if len(body) > TEXT_LIMIT:
        notes["text_cut"] += 1
        body = body[:TEXT_LIMIT]
    try:
        out = body.decode()
    except UnicodeDecodeError:
        notes["text_replaced"] += 1
        out = body.decode("utf-8", "replace")
    if not out.strip():
        raise BadSample("text", "empty")
    return out


def about(members: Mapping[str, bytes]) -> Any:
    """The value of the JSON member. Raises BadSample member_missing or json."""
    if "json" not in members:
        raise BadSample("member_missing", "json")
    try:
        value = json.loads(members["json"])
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


def caption(members: Mapping[str, bytes]) -> str:
    """txt, else "caption" of the JSON. Raises BadSample member_missing, text or json."""
    if "txt" in members:
        return text(members["txt"])
    if "json" not in members:
        raise BadSample("member_missing", "text")
    value = about(members)
    found = value.get("caption") if isinstance(value, dict) else None
    if not isinstance(found, str):
        raise BadSample("member_missing", "caption in json")
    return text(found.encode("utf-8", "replace"))


def captions(members: Mapping[str, bytes]) -> list[str]:
    """All of a sample's: "captions" of the JSON where there is such a list, else its one.

    Raises as `caption` does.
    """
    if "json" in members and b'"captions"' in members["json"]:
        value = about(members)
        found = value.get("captions") if isinstance(value, dict) else None
        if isinstance(found, list) and found and all(isinstance(x, str) for x in found):
            return [text(x.encode("utf-8", "replace")) for x in found]
    return [caption(members)]


def label(members: Mapping[str, bytes]) -> int:
    """The class number, -1 where there is none.

    Raises BadSample label for what is no number below 2^31.
    """
    if "cls" not in members:
        return -1
    body = members["cls"].strip()
    if not body.isdigit() or len(body) > 10 or int(body) >= LABEL_LIMIT:
        raise BadSample("label", repr(body[:20]))
    return int(body)


def labels(members: Mapping[str, bytes]) -> list[int]:
    """The class numbers of a sample that may have several, apart by blanks or commas;
    [] where there is no cls member.

    Raises BadSample label for what is no number below 2^31.
    """
    body = members["cls"].replace(b",", b" ").split() if "cls" in members else []
    return [label({"cls": word}) for word in body]


def mask(members: Mapping[str, bytes]) -> bytes | None:
    """The bytes of the picture that says what is object (not 0), None where there is none."""
    return members.get("mask.png")
