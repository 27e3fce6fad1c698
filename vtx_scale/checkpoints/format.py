"""Names, digests and the manifest."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from vtx_scale.data_pipeline.errors import UserError

FORMAT = 1
NAME = re.compile(r"^step-(\d{8})$")
FILE = re.compile(r"^(data|table)-\d{5}\.(safetensors|json)$")


class Damaged(Exception):
    """A checkpoint that is not whole; the text says what is wrong with which file."""


def folder_name(step: int) -> str:
    return f"step-{step:08d}"


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def sha256_file(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def write_synced(path: Path, body: bytes) -> None:
    """Write, and return when the bytes are on the disk."""
    with path.open("wb") as f:
        f.write(body)
        f.flush()
        os.fsync(f.fileno())


def seal(manifest: dict[str, Any]) -> bytes:
    """The manifest with the digest of its own canonical JSON."""
    body = {k: v for k, v in manifest.items() if k != "sum"}
    return canonical({**body, "sum": hashlib.sha256(canonical(body)).hexdigest()})


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a committed checkpoint, checked against its own digest.

    Raises Damaged where it is missing, torn, altered or names a file outside the folder; UserError
    for another format.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
        body = {k: v for k, v in manifest.items() if k != "sum"}
        if manifest["sum"] != hashlib.sha256(canonical(body)).hexdigest():
            raise Damaged("manifest.json does not match its own digest")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as e:
        raise Damaged(f"manifest.json cannot be read ({type(e).__name__})") from e
    if manifest["format"] != FORMAT:
        raise UserError(
            f"{folder} has checkpoint format {manifest['format']}, this version reads {FORMAT}: "
            f"open it with the version that wrote it ({manifest.get('versions')})."
        )
    for name in manifest["files"]:
        if not FILE.match(name):
            raise Damaged(f"manifest.json names the file {name!r}")
    return manifest


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoint folders of a run, ascending; their content is not looked at."""
    if not folder.is_dir():
        return []
    return sorted(int(m[1]) for p in folder.iterdir() if (m := NAME.match(p.name)))
