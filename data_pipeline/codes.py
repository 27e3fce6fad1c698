"""Pictures as codes of a discrete VAE: the member `codes.npy`, and `codec.json` beside the shards,
which says of which codec and of which crops they are.
"""

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vtx_scale.data_pipeline.errors import BadSample, UserError, described
from vtx_scale.data_pipeline.storage import Storage

MEMBER = "codes.npy"
LIMIT = 1 << 20  # bytes of the member
HEADER = 1 << 10  # letters of its header, which is a Python literal
FILE = "codec.json"
FORMAT, VERSION = "vtx-codes", 1
Codes = NDArray[np.unsignedinteger[Any]]  # (views, places)


def packed(codes: NDArray[Any], vocab: int) -> bytes:
    """The member of codes (views, places) in 0 .. vocab - 1: uint16, or uint32 where these are too
    few; the same bytes for the same codes. Raises ValueError beyond 1 MiB.
    """
    out = io.BytesIO()
    dtype = "<u2" if vocab <= 1 << 16 else "<u4"
    np.lib.format.write_array(out, np.ascontiguousarray(codes, dtype), (1, 0), allow_pickle=False)
    if out.tell() > LIMIT:
        raise ValueError(f"{MEMBER} of {out.tell()} bytes, {LIMIT} is the limit")
    return out.getvalue()


def unpacked(members: Mapping[str, Any], places: int, vocab: int) -> Codes:
    """The codes (views, places) of a sample, each below `vocab`.

    An array of objects is never unpickled. Raises BadSample: member_missing, and codes for what is
    no such array.
    """
    body = members[MEMBER] if MEMBER in members else None
    if body is None:
        raise BadSample("member_missing", MEMBER)
    if len(body) > LIMIT:
        raise BadSample("codes", f"{len(body)} bytes")
    shape, dtype, at = header(body)
    if dtype.kind != "u" or dtype.itemsize not in (2, 4):
        raise BadSample("codes", f"dtype {dtype}"[:100])
    if len(shape) != 2 or not shape[0] or shape[1] != places:
        raise BadSample("codes", f"shape {shape}, the recipe takes (views, {places})"[:200])
    if len(body) - at != shape[0] * places * dtype.itemsize:
        raise BadSample("codes", f"{len(body) - at} bytes of data for shape {shape}")
    codes: Codes = np.frombuffer(body, dtype, offset=at).reshape(shape)
    if (most := int(codes.max())) >= vocab:
        raise BadSample("codes", f"{most} of {vocab} codes")
    return codes


def header(body: bytes) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """(shape, dtype, offset of the data) of a NumPy file, of which nothing else is looked at.

    Raises BadSample codes.
    """
    stream = io.BytesIO(body)
    try:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version} of the format")
        first = version == (1, 0)
        read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = read(stream, max_header_size=HEADER)
    except Exception as e:  # whatever a literal of somebody's can raise, MemoryError among it
        raise BadSample("codes", described(e)) from None
    if by_columns or any(n < 0 for n in shape):
        raise BadSample("codes", "an array by columns")
    return shape, dtype, stream.tell()


@dataclass(frozen=True)
class Coding:
    """Of which codec, crops and pictures the codes of a set of shards are: `codec.json`.

    codec: the run that held it, for people. digest: of its weights. resolution, grid, vocab: pixels
    and codes of a side, and how many codes there are. views: crops of a picture; crop: the fields
    of `data` that say how they are taken; seed: of their draws. source: the digest of the index of
    the pictures' shards. shards: how many there are; None until all of them are.
    """

    codec: str
    digest: str
    resolution: int
    grid: int
    vocab: int
    views: int
    crop: dict[str, Any]
    seed: int
    source: str
    shards: int | None = None

    def body(self) -> bytes:
        """As it is stored."""
        about = {"format": FORMAT, "version": VERSION, **asdict(self)}
        return (json.dumps(about, indent=2, sort_keys=True) + "\n").encode()

    def __str__(self) -> str:
        return f"{self.codec} ({self.digest[:12]})"


def coding_in(storage: Storage, folder: str = "") -> Coding | None:
    """The `codec.json` of a folder of a storage, None where there is none.

    Raises UserError for one that is not ours.
    """
    name = f"{folder}/{FILE}" if folder else FILE
    try:
        body = storage.get_range(name, 0, LIMIT)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return parsed(body, f"{name} in {storage}")


def parsed(body: bytes, title: str) -> Coding:
    """What a `codec.json` says. title: names it to people. Raises UserError."""
    try:
        about = json.loads(body)
        if about["format"] != FORMAT or about["version"] != VERSION:
            raise ValueError("another format")
        return Coding(**{f.name: about[f.name] for f in fields(Coding)})
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{title} is not one that 'vtx data encode' of this version wrote: encode the pictures "
            "again, into another folder."
        ) from None


def coding_of(storage: Storage, shards: Iterable[str]) -> Coding | None:
    """Of which codec the codes in these shards are, by the `codec.json` beside each of them; None
    where there is none, as beside pictures.

    Raises UserError where they are of several codecs or crops, or not all there yet.
    """
    folders = sorted({name.rpartition("/")[0] for name in shards})
    found = {folder: coding_in(storage, folder) for folder in folders}
    first = found[folders[0]] if folders else None
    for folder, coding in found.items():
        if coding is None:
            if first is not None:
                raise UserError(
                    f"{folder or '.'} in {storage} has no {FILE}, and {folders[0] or '.'} has one: "
                    "give shards of codes or of pictures."
                )
            continue
        if coding.shards is None:
            raise UserError(
                f"{folder or storage} holds the codes of some of its shards only: run the same "
                "'vtx data encode' again, it goes on where it ended."
            )
        if first is None or alike(first) != alike(coding):
            raise UserError(
                f"{folder or '.'} in {storage} holds codes of {coding}, and {folders[0] or '.'} of "
                f"{first or 'no codec'}: give shards of one codec and one crop."
            )
    return first


def alike(coding: Coding) -> dict[str, Any]:
    """What is the same of sets that may be read together."""
    free = ("codec", "seed", "source", "shards", "views")
    return {k: v for k, v in asdict(coding).items() if k not in free}
