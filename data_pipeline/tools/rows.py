"""A row of a table or a file of a folder as a sample, if it can be used."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from vtx_scale.data_pipeline.errors import BadSample
from vtx_scale.data_pipeline.lists import SCHEME
from vtx_scale.data_pipeline.scan import shown
from vtx_scale.data_pipeline.storage import Folder, Storage
from vtx_scale.data_pipeline.tar import MEMBER_LIMIT
from vtx_scale.data_pipeline.tools.packing import Left
from vtx_scale.data_pipeline.tools.shards import Sample
from vtx_scale.data_pipeline.tools.verify import looked_at

KINDS = {b"\xff\xd8": "jpg", b"\x89PNG": "png", b"GIF8": "gif", b"BM": "bmp", b"RIFF": "webp"}


def sample_of(
    storage: Storage,
    number: int,
    row: str,
    picture: Any,
    caption: Any = None,
    label: Any = None,
    classes: Mapping[str, int] | None = None,
) -> Sample | Left:
    """Row `number` as a sample: its key is the number, and the path of its picture is in `json`.

    row: how it is named where it is left out. picture: bytes, a path beside the table or on this
    machine, or a file URL of it. caption, label: what stands in the row, None where it says none.
    classes: the numbers of names. Raises OSError where a storage cannot be read.
    """
    members: dict[str, bytes] = {}
    try:
        body = body_of(storage, picture)
        kind = next((kind for magic, kind in KINDS.items() if body.startswith(magic)), "jpg")
        members[kind] = body
        about: dict[str, Any] = {}
        if isinstance(caption, list):  # several of one picture
            about["caption"] = [str(text) for text in caption if text]
            if not about["caption"]:
                raise BadSample("text")
        elif caption is not None:
            members["txt"] = str(caption).encode("utf-8", "replace")
        if label is not None:
            members["cls"] = class_of(label, classes)
        if path := path_of(picture):
            about["path"] = shown(path, 4096)
        if about:
            members["json"] = json.dumps(about).encode()
        reason, member = looked_at(members)
        if reason:
            raise BadSample(reason, "" if member == kind else member)
    except BadSample as e:
        return Left(shown(row), e.reason, shown(e.detail, 4096))
    return f"{number:09d}", members


def path_of(picture: Any) -> str:
    """The path that a cell names, "" of bytes. Hugging Face writes {"bytes": ..., "path": ...}."""
    if isinstance(picture, dict):
        picture = picture.get("path")
    return picture if isinstance(picture, str) else ""


def body_of(storage: Storage, picture: Any) -> bytes:
    """The bytes of a picture. Raises BadSample empty, url, path or member_size."""
    if isinstance(picture, dict):
        picture = picture.get("bytes") or picture.get("path")
    if isinstance(picture, bytes) and picture:
        return picture
    if not isinstance(picture, str) or not picture:
        raise BadSample("empty")
    name = picture
    if scheme := SCHEME(picture):
        if scheme[1].lower() != "file":
            raise BadSample("url", f"{scheme[1]}: is never fetched")
        name = unquote(urlsplit(picture).path)
    if name.startswith("/"):
        storage, name = Folder(Path("/")), name.lstrip("/")
    try:
        body = storage.get_range(name, 0, MEMBER_LIMIT + 1)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as e:
        place = f"{storage}/{name}".replace("//", "/", str(storage) == "/")
        raise BadSample("path", f"{place}: {e.strerror or 'not there'}") from None
    except ValueError:
        raise BadSample("path", "a zero byte in its name") from None
    if len(body) > MEMBER_LIMIT:
        raise BadSample("member_size")
    return body


def class_of(label: Any, classes: Mapping[str, int] | None) -> bytes:
    """The digits of a class. Raises BadSample label for what is none."""
    text = word_of(label)
    if classes:
        if text not in classes:
            raise BadSample("label", "empty")
        return str(classes[text]).encode()
    return text.encode("utf-8", "replace")


def word_of(label: Any) -> str:
    """What a cell says: pandas makes 3.0 of a 3 beside an empty one."""
    if isinstance(label, float):
        if not math.isfinite(label):
            return ""
        return str(int(label)) if label == int(label) else str(label)
    return "" if label is None else str(label).strip()
