"""The index of a shard list: found where it is kept and seen to be fresh, or made."""

from collections.abc import Callable
from pathlib import Path

from vtx_scale.data_pipeline.index import (
    Index,
    build,
    cache_folder,
    index_name,
    read,
    save,
    time_tag,
)
from vtx_scale.data_pipeline.pool import Pool
from vtx_scale.data_pipeline.quarantine import kept_in
from vtx_scale.data_pipeline.remote import open_remote, refuse_unfinished, store_remote
from vtx_scale.data_pipeline.scan import CHUNK
from vtx_scale.data_pipeline.shards import Shards, local_shards
from vtx_scale.data_pipeline.storage import Folder, short_hash

LARGE = 20 << 30  # bytes: reading so much is said before it is done


def open_index(
    shards: str | Shards,
    chunk: int = CHUNK,
    say: Callable[[str], None] = lambda line: None,
    pool: Pool | None = None,
) -> Index:
    """The index of a shard list, made on first use; a stale one is made again with one line.

    shards: a folder, a brace pattern, a glob, or a list of these apart by commas or `::`. chunk:
    the most samples of a chunk. say: takes a line for people. pool: reads a shard a unit. It lies
    in `.vtx` beside the first shard, or in the cache where that cannot be written, and nowhere
    where there is no sample; an index that is read costs no look into the shards but their sizes
    and times. Raises UserError where shards are missing, compressed, something else or of a scheme
    that is not opened; that of shards in a bucket is made by `vtx data index` alone.
    """
    if isinstance(shards, str):
        shards = local_shards(shards, say)
    return open_remote(shards, chunk) if shards.remote else open_local(shards, chunk, say, pool)


def open_local(
    shards: Shards, chunk: int, say: Callable[[str], None], pool: Pool | None = None
) -> Index:
    """That of shards on this machine's disks."""
    name = index_name(shards.names, chunk)
    first = shards.local(shards.names[0]).parent
    cached = cache_folder() / short_hash(str(shards.root)) / name
    # a folder that holds folders of shards is not ours to write to
    places = [first / ".vtx" / name, cached]
    news = ""
    # the first version wrote there
    for path in dict.fromkeys([shards.local(".vtx") / name, *places]):
        if path.exists():
            try:
                index = read(path, shards.root, shards.names)
            except Exception as e:  # a torn or foreign file: made again, never trusted
                news = f"index {path} cannot be read ({e}): made again"
                continue
            if fresh(index, shards):
                return kept_at(index, path)
            news = f"index {path} is stale (a shard changed): made again"
    if news:
        say(news)
    refuse_unfinished(shards)
    total = sum(shards.local(name).stat().st_size for name in shards.names)
    if total > LARGE:
        say(
            f"{total >> 30} GiB are read once to index them; 'vtx data index {shards.title}' does "
            "so at another time"
        )
    index = build(shards, chunk, say, pool=pool)
    if not index.n:  # a mistake, which leaves nothing behind
        return index
    kept_in(index, [(Folder(path.parent), "") for path in places])
    for path in places:
        try:
            save(index, path)
        except OSError:  # a read-only folder
            continue
        return kept_at(index, path)
    say(
        f"the index could not be stored ({places[-1].parent} is not writable): "
        "it is made again at each start"
    )
    return index


def keep_again(index: Index, shards: Shards) -> None:
    """Store an index in its place once more, with what it says of samples by now. Raises OSError
    where that cannot be written.
    """
    if shards.remote:
        assert index.beside is not None
        store_remote(index, *index.beside)
    else:
        save(index, Path(str(index.file)))


def kept_at(index: Index, path: Path) -> Index:
    """With the place of its file."""
    index.file, index.beside = path, (Folder(path.parent), "")
    return index


def fresh(index: Index, shards: Shards) -> bool:
    """Whether every shard has the size and time that were indexed."""
    for name, size, known in zip(
        index.names, index.shard_bytes.tolist(), index.shard_tag, strict=True
    ):
        try:
            stat = shards.local(name).stat()
        except OSError:
            return False
        if stat.st_size != size or time_tag(stat.st_mtime_ns).tobytes() != known.tobytes():
            return False
    return True
