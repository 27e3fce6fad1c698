"""What is no shard: a file is named by its first bytes or its name, a folder by what is in it."""

import os
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from vtx_scale.data_pipeline.errors import NotShards, UserError
from vtx_scale.data_pipeline.tar import BLOCK, COMPRESSED, sound

ENTRIES_LOOKED_AT = 10_000  # below a folder, for what is said of it
HOW = "docs/data.md, 'Making shards', shows how to pack samples into tars"
PACKED = tuple(f".tar.{x}" for x in ("gz", "bz2", "xz", "zst", "lz4", "z", "lzma", "br")) + (
    *(".tgz", ".tbz2", ".tbz", ".txz", ".tzst"),
)

# what lies in place of a tar: by its first bytes, else by its name
MAGICS = {
    b"PAR1": "a parquet table",
    b"PK\x03\x04": "a zip archive",
    b"\xff\xd8\xff": "a picture",
    b"\x89PNG": "a picture",
    b"GIF8": "a picture",
    b"RIFF": "a picture or a recording",
    b"ARROW1": "an Arrow table",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
    b"\x00\x05\x16\x07": "what a Mac keeps beside a file (AppleDouble)",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a rar archive",
}
TABLES = (".csv", ".tsv", ".parquet")  # of which shards can be made
SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` of Hugging Face writes
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jfif")
SUFFIXES = {
    ".parquet": "parquet table",
    ".csv": "CSV table",
    ".tsv": "TSV table",
    ".zip": "zip archive",
    ".arrow": "Arrow table",
    ".json": "JSON file",
    ".jsonl": "JSON-lines file",
    ".tfrecord": "TFRecord file",
    ".mdb": "LMDB database",
    ".h5": "HDF5 file",
    ".npy": "NumPy array",
    ".npz": "NumPy archive",
    **dict.fromkeys(PICTURES, "picture"),
}


def entries(folder: Path) -> list[str]:
    """The names in a folder, sorted; none where it cannot be read."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def subfolders(folder: Path) -> Iterator[Path]:
    """A folder and all below it that are not hidden, each once, whatever links lead back."""
    found = {os.path.realpath(folder)}
    for at, below, _ in os.walk(folder, followlinks=True):
        yield Path(at)
        kept = []
        for name in sorted(below):
            real = os.path.realpath(os.path.join(at, name))
            if not name.startswith(".") and real not in found:
                found.add(real)
                kept.append(name)
        below[:] = kept


def inside(folder: Path) -> tuple[list[str], bool]:
    """(what lies in a folder and below it, the end of a name; whether the look was cut short)."""
    found: list[str] = []
    for at in subfolders(folder):
        found += [os.path.relpath(at / name, folder) for name in entries(at) if name[0] != "."]
        if len(found) >= ENTRIES_LOOKED_AT:
            return found[:ENTRIES_LOOKED_AT], True
    return found, False


def counted(names: list[str], noun: str) -> str:
    """Such as "3 hidden files (._a.tar ...)"."""
    if len(names) > 1:
        noun = noun.removesuffix("y") + "ies" if noun.endswith("y") else noun + "s"
    return f"{len(names):,} {noun} ({names[0]}{' ...' if len(names) > 1 else ''})"


def build_command(source: str, *more: str) -> str:
    """The whole command that makes shards of a source, quoted for a shell; they go to a folder of
    a like name where the command is given, of a bucket beside the source.
    """
    place = source.rstrip("/")
    name = place.rpartition("/")[2] if "://" in place else os.path.basename(os.path.abspath(source))
    stem = re.sub(r"[^A-Za-z0-9._=+-]+", "-", re.sub(r"\.\w+$", "", name) or name).strip("-.")
    out = f"{stem or 'my'}-shards"
    if "://" in place:
        out = f"{place.rpartition('/')[0]}/{out}"
    return shlex.join(["vtx", "data", "build", source, out, *more])


def buildable(found: str, source: str) -> NotShards:
    """The refusal of what is no shards, with the command that makes some of it."""
    return NotShards(found, source, build_command(source))


def not_a_tar(path: Path, head: bytes) -> UserError | None:
    """The refusal of a file that is something else by its first block (or its name), None of what
    may be a tar.
    """
    if not head or (len(head) == BLOCK and sound(head)):
        return None
    for magic, kind in COMPRESSED.items():
        if head.startswith(magic):
            return UserError(unpacked(path, kind))
    if head.startswith(b"version https://git-lfs"):
        return UserError(
            f"{path} is a pointer of git-lfs and not the shard: fetch it with 'git lfs pull'."
        )
    kind = next((v for k, v in MAGICS.items() if head.startswith(k)), "")
    if not kind and b"\0" not in head:
        kind = text_kind(head)
    if (not kind or kind == "a text file") and (named := SUFFIXES.get(path.suffix.lower())):
        kind = f"{'an' if named[0] in 'AHL' else 'a'} {named}"
    if kind == "a web page":
        return UserError(
            f"{path} is a web page and no tar: the download was refused, so fetch it again."
        )
    if not kind:
        return None
    found, suffix = f"{path} is {kind} and no tar", path.suffix.lower()
    if suffix in TABLES:
        return buildable(found, str(path))
    if suffix in PICTURES or (suffix == ".arrow" and (path.parent / SAVED[1]).exists()):
        return buildable(found, str(path.parent))
    return UserError(f"{found}: {HOW}.")


def text_kind(head: bytes) -> str:
    """What a file without zero bytes is by its beginning, "" where it is no text."""
    try:
        start = head[:-3].decode().lstrip("\ufeff \t\r\n")
    except UnicodeDecodeError:
        return ""
    if start[:9].lower() == "<!doctype" or start[:5].lower() == "<html":
        return "a web page"
    return "a text file" if start[:1] in ("{", "[") or "\n" in start else ""


def unpacked(path: Path, kind: str) -> str:
    """A sentence on a compressed tar."""
    plain = path.with_suffix("" if path.suffix in (".gz", ".bz2", ".xz", ".zst") else ".plain.tar")
    return (
        f"{path} is compressed with {kind}, but samples are read by offset: unpack it with "
        f"'{kind} -dc {path} > {plain}'."
    )


def instead(folder: Path, beside: list[str]) -> UserError:
    """The refusal of a folder that holds no shards: what is in it, and what to do.

    beside: what in it looks like shards, a clause each kind.
    """
    names, cut = inside(folder)
    more = "at least " if cut else ""
    if tars := [n for n in names if n.endswith(".tar") and "/" in n]:
        return UserError(
            f"{folder} holds no *.tar itself but {more}{counted(tars, 'tar')} in subfolders: "
            f"give {folder}/**/*.tar."
        )
    if beside and not any("compressed" in clause for clause in beside):
        return UserError(
            f"{folder} holds no *.tar but {'; '.join(beside)}: finish downloads, give shards names "
            "that end in .tar and begin with no dot, or give a pattern."
        )
    if any(n.lower().endswith(PACKED) for n in names):
        return UserError(
            f"{folder} holds no *.tar but compressed ones: unpack them: "
            "give the folder of the shards, or a pattern."
        )
    if any(name in names for name in SAVED):
        return buildable(f"{folder} holds no *.tar but a data set of Hugging Face's", str(folder))
    kinds = Counter(SUFFIXES.get(os.path.splitext(n)[1].lower(), "") for n in names)
    kinds.pop("", None)
    if not entries(folder):
        return UserError(f"{folder} holds no *.tar, since it is empty: look at the path.")
    if not kinds:
        return UserError(f"{folder} holds no *.tar: give the folder of the shards, or a pattern.")
    kind, count = kinds.most_common(1)[0]
    found = f"{folder} holds no *.tar but {more}{count:,} {kind}{'s' * (count > 1)}"
    if any(n.lower().endswith((*PICTURES, *TABLES)) for n in names):
        return buildable(found, str(folder))
    return UserError(f"{found}: {HOW}.")
