"""Names, digests and the manifest. Standard library alone."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.storage import Storage

FORMAT = 2
READ = (1, 2)  # 1 had no epochs
FILE = re.compile(r"(data|table)-\d{5}(\.e\d+)?\.(safetensors|json)")
MANIFEST = re.compile(r"step-(\d{8})/manifest\.json")
MANIFEST_LIMIT = 1 << 28  # bytes: two lines a rank, of a million ranks
# what JSON of another kind than expected raises where it is looked at
MALFORMED = (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError)


class Damaged(Exception):
    """A checkpoint that is not whole; the text says what is wrong with which file."""


def folder_name(step: int) -> str:
    return f"step-{step:08d}"


def manifest_name(step: int) -> str:
    return f"{folder_name(step)}/manifest.json"


def file_names(rank: int, epoch: int) -> tuple[str, str]:
    """A rank's data and its table, within the folder of a step."""
    return f"data-{rank:05d}.e{epoch}.safetensors", f"table-{rank:05d}.e{epoch}.json"


def data_of(table: str) -> str:
    """The name of the data that a table describes."""
    return table.replace("table-", "data-").replace(".json", ".safetensors")


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def sha256_file(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def seal(value: dict[str, Any]) -> bytes:
    """A manifest or a table with the digest of its own canonical JSON."""
    body = {k: v for k, v in value.items() if k != "sum"}
    return canonical({**body, "sum": hashlib.sha256(canonical(body)).hexdigest()})


def unseal(sealed: bytes, name: str) -> dict[str, Any]:
    """What `seal` was given, with its digest.

    Raises Damaged where the bytes are not what it gave.
    """
    try:
        value: dict[str, Any] = json.loads(sealed)
        body = {k: v for k, v in value.items() if k != "sum"}
        sound = value["sum"] == hashlib.sha256(canonical(body)).hexdigest()
        sound = sound and canonical(value) == sealed
    except MALFORMED as e:
        raise Damaged(f"{name} cannot be read ({type(e).__name__})") from e
    if not sound:
        raise Damaged(f"{name} does not match its own digest")
    return value


def read_manifest(storage: Storage, step: int) -> dict[str, Any]:
    """The manifest of a checkpoint, checked against its own digest.

    Raises Damaged where it is missing, torn, altered or names a file outside the folder; UserError
    for another format.
    """
    return manifest_and_tag(storage, step)[0]


def manifest_and_tag(storage: Storage, step: int) -> tuple[dict[str, Any], str]:
    """The same, and the tag of the object that it was."""
    try:
        with storage.open(manifest_name(step)) as file:
            if file.size > MANIFEST_LIMIT:
                raise Damaged(f"manifest.json has {file.size} bytes")
            body, tag = file.read(0, file.size), file.tag
    except OSError as e:
        raise Damaged(f"manifest.json cannot be read ({e.strerror or e})") from e
    manifest = unseal(body, "manifest.json")
    if manifest.get("format") not in READ:
        raise UserError(
            f"{folder_name(step)} has checkpoint format {manifest.get('format')}, this version "
            f"reads up to {FORMAT}: open it with the version that wrote it "
            f"({manifest.get('versions')})."
        )
    try:
        if manifest["step"] != step:
            raise Damaged(f"manifest.json is of step {manifest['step']}")
        for name, entry in manifest["files"].items():
            if not FILE.fullmatch(name):
                raise Damaged(f"manifest.json names the file {name!r}")
            if not (isinstance(entry["size"], int) and isinstance(entry["sha256"], str)):
                raise Damaged(f"manifest.json does not say what {name} is")
    except MALFORMED as e:
        raise Damaged(f"manifest.json is none ({type(e).__name__})") from e
    return manifest, tag


def steps(storage: Storage) -> list[int]:
    """Steps of the checkpoints of a run, ascending: those that have a manifest, which is not
    looked at.
    """
    return sorted(int(m[1]) for name in storage.list("step-") if (m := MANIFEST.fullmatch(name)))
