"""The index of shards in a bucket: made by one command, kept beside them or in the cache, and
opened with as few requests as it takes.
"""

import shlex
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.index import (
    UNFINISHED,
    Index,
    build,
    cache_folder,
    index_name,
    read,
    remote_tag,
    save,
)
from vtx_scale.data_pipeline.pool import Pool
from vtx_scale.data_pipeline.quarantine import kept_in
from vtx_scale.data_pipeline.scan import CHUNK
from vtx_scale.data_pipeline.shards import Shards, listed, read_whole
from vtx_scale.data_pipeline.storage import Folder, Head, Storage, short_hash

FETCHES = 3  # of an index that is not the one that was written
LIST = "index.safetensors"  # of a folder's own tars: it holds their names too


def open_remote(shards: Shards, chunk: int = CHUNK) -> Index:
    """The index of shards in a bucket: one request, and a look at the first shard and the last.

    That every other one is as it was indexed is seen where it is read. One in the cache is taken
    where there is none beside the shards that fits. Raises UserError where there is no index, a
    torn one, or one of other shards.
    """
    command = f"vtx data index {shlex.quote(shards.title)}"
    fault = (
        f'{shards.title} has no index yet: run "{command}" once, which reads every shard; '
        "add --cache where nothing may be written beside them."
    )
    heads: dict[str, Head | None] = {}
    for root, prefix, name in places(shards, chunk):
        where = f"{root}/{prefix}{name}"
        try:
            index = stored(root, f"{prefix}{name}", shards)
        except ValueError as e:
            fault = f'{where} cannot be read ({e}): run "{command}" again.'
            continue
        if index is None:
            continue
        stale = changed(index, heads)
        if not stale:
            index.file, index.beside = where, (root, prefix)
            return index
        fault = f'{stale}: put it back, or run "{command}" again.'
    raise UserError(fault)


def changed(index: Index, heads: dict[str, Head | None]) -> str:
    """What is said of its first or last shard where it is another than the one that was indexed,
    "" where they are not. heads: those that were asked for.
    """
    for shard in sorted({0, len(index.names) - 1}):
        name = index.names[shard]
        if name not in heads:
            heads[name] = index.root.head(name)
        head = heads[name]
        if head is None:
            return f"{index.url(shard)} is gone"
        if remote_tag(head, name).tobytes() != index.shard_tag[shard].tobytes():
            return f"{index.url(shard)} was written anew since it was indexed"
    return ""


def stored(root: Storage, name: str, shards: Shards) -> Index | None:
    """The index in an object, None where there is none.

    Raises ValueError for one that is torn or of other shards, also when it is fetched again.
    """
    fault = ""
    for _ in range(FETCHES):
        body = read_whole(root, name)
        if body is None:
            return None
        try:
            return parsed(body, shards)
        except Exception as e:  # of what was sent, or of what is stored
            fault = str(e)
    raise ValueError(fault)


def parsed(body: bytes, shards: Shards) -> Index:
    """The index that an object holds. Raises as `index.read` does."""
    with tempfile.TemporaryDirectory(prefix="vtx-index-") as folder:
        path = Path(folder) / "index"
        path.write_bytes(body)
        return read(path, shards.root, shards.names or None)


def named(shards: Shards) -> Shards:
    """With their names: those of a bucket's folder are looked up. Raises UserError where it holds
    none.
    """
    return listed(shards) if shards.folder is not None and not shards.names else shards


def places(shards: Shards, chunk: int) -> list[tuple[Storage, str, str]]:
    """(storage, what names begin with there, name) of the index: beside the shards, in the cache.

    Of a folder that was named they are known before the names of its shards.
    """
    beside, cached = homes(shards)
    name = LIST if shards.folder is not None else index_name(shards.names, chunk)
    return [(*beside, name), (*cached, name)]


def homes(shards: Shards) -> tuple[tuple[Storage, str], tuple[Storage, str]]:
    """Where what belongs to shards is kept: beside them, and in the cache."""
    first = "" if shards.folder is not None else shards.names[0].rpartition("/")[0]
    beside = f"{first}/.vtx/" if first else ".vtx/"
    return (shards.root, beside), cached_home(shards.root)


def cached_home(root: Storage) -> tuple[Storage, str]:
    """Where this user's cache keeps what belongs to shards below a place."""
    return Folder(cache_folder() / short_hash(str(root))), ""


def index_remote(
    shards: Shards,
    chunk: int = CHUNK,
    cache: bool = False,
    say: Callable[[str], None] = lambda line: None,
    key: Callable[[str], None] | None = None,
    pool: Pool | None = None,
) -> Index:
    """Make the index of shards in a bucket, reading each once, and keep it beside them, or with
    `cache` in this user's cache; nothing is kept where there is no sample. key: is given that of
    each sample in order. pool: reads a shard a unit.

    Raises UserError where shards are missing, not a whole set or cannot be indexed, and where
    nothing may be written.
    """
    shards = named(shards)
    refuse_unfinished(shards)
    index = build(shards, chunk, say, key, pool)
    if not index.n:
        return index
    root, prefix = homes(shards)[cache]
    kept_in(index, [(root, prefix)])
    try:
        store_remote(index, root, prefix, chunk, shards.folder is not None)
    except PermissionError as e:
        raise UserError(
            f"nothing may be written beside {shards.title} ({e.strerror}): add --cache."
        ) from None
    name = LIST if shards.folder is not None else index_name(index.names, chunk)
    return replace(index, file=f"{root}/{prefix}{name}", beside=(root, prefix))


def refuse_unfinished(shards: Shards) -> None:
    """Raises UserError where shards, wherever they lie, are the beginning of a set that is not
    complete; one look at each of their folders.
    """
    for folder in sorted({name.rpartition("/")[0] for name in shards.names}):
        if shards.root.head(f"{folder}/{UNFINISHED}".lstrip("/")) is not None:
            where = shards.url(folder).rstrip("/")
            raise UserError(f"{where} is not complete: run the command that writes it once more.")


def store_remote(
    index: Index, root: Storage, prefix: str, chunk: int = CHUNK, folder: bool | None = None
) -> None:
    """Keep an index under its names. folder: whether it is a folder's, which has a second one; of
    one that is kept already None will do. Raises OSError where nothing may be written.
    """
    if folder is None:
        folder = root.head(f"{prefix}{LIST}") is not None
    names = [index_name(index.names, chunk)] + [LIST] * folder
    with tempfile.TemporaryDirectory(prefix="vtx-index-") as place:
        path = Path(place) / "index"
        save(index, path)
        for name in names:
            root.put(f"{prefix}{name}", path.read_bytes())
