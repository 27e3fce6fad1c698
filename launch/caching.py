"""Where a node of a run keeps chunks of its shards, and whether there is room for them."""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from vtx_scale.data_pipeline.batches import Batches, InOrder
from vtx_scale.data_pipeline.book import costs
from vtx_scale.data_pipeline.cache import SPARE, NodeCache
from vtx_scale.data_pipeline.index import Index, cache_folder
from vtx_scale.data_pipeline.prefetch import Caching, shortage
from vtx_scale.data_pipeline.storage import Folder
from vtx_scale.specs.run import Run, System

SHARE, MOST = 10, 200 * 10**9  # of what is free on a disk: one in ten bytes, at most so many


def folder_of(system: System) -> Path:
    """Where a node keeps chunks."""
    return Path(system.cache.folder) if system.cache.folder else cache_folder().parent / "chunks"


def caching_of(run: Run, batches: Batches, say: Callable[[str], None]) -> Caching | None:
    """The cache of this node for batches, None where their shards are read as they are: local ones
    for which no folder is given, and where none can be had.

    say: takes a sentence where there is no cache, or one that is too small for what a training has
    in use.
    """
    indexes, cache = batches.indexes, run.system.cache
    remote = any(not isinstance(index.root, Folder) for index in indexes)
    if cache.bytes == 0 or not (remote or cache.folder):
        return None
    folder = folder_of(run.system)
    node = NodeCache(folder, 0, indexes[0].digest)
    if fault := node.prepare():
        say(f"{fault} The run goes on without it.")
        return Caching(folder, 0, sparse=True) if remote else None
    limit = limit_of(folder, node.used()) if cache.bytes is None else cache.bytes
    NodeCache(folder, limit, indexes[0].digest).shrink()
    shares = shares_of(limit, indexes)
    if isinstance(batches.order, InOrder):
        return Caching(folder, limit, shares=shares)
    here, need = ranks_here(batches.rank, batches.world), 0
    for i, index in enumerate(indexes):
        room = shares[i] if shares else limit
        need += shortage(batches.plan(here, i), index.chunk_bytes, room, spread(run.system))
    if need:
        say(
            f"The cache in {folder} may hold {limit} bytes (system.cache.bytes) and {need} are "
            "in use at a time: nothing is kept there"
            + (", and samples are fetched one by one." if remote else ".")
        )
        return Caching(folder, limit, sparse=True) if remote else None
    return Caching(folder, limit, shares=shares)


def shares_of(limit: int, indexes: Sequence[Index]) -> tuple[int, ...]:
    """What each source of a mix may take: as much as the others, since as many of its chunks are in
    use, but no more than it has; none of one source alone.
    """
    if len(indexes) == 1:
        return ()
    sizes = [SPARE + costs(index.chunk_bytes) for index in indexes]
    found, left = [0] * len(sizes), limit
    for place, i in enumerate(sorted(range(len(sizes)), key=lambda i: sizes[i])):
        found[i] = min(sizes[i], left // (len(sizes) - place))
        left -= found[i]
    return tuple(found)


def limit_of(folder: Path, used: int) -> int:
    """The bytes that a cache may take by itself: of what is free, and what it has already."""
    return min(MOST, (shutil.disk_usage(folder).free + used) // SHARE)


def spread(system: System) -> int:
    """Steps between the foremost loader process of a node and the last: each reads two ahead."""
    return 2 * max(1, system.workers) + 1


def ranks_here(rank: int, world: int) -> list[int]:
    """The ranks with batches of their own on this node, as its launcher says how many there are."""
    total = int(os.environ.get("WORLD_SIZE", world))
    # of srun: "8(x4)", or "8,4"
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE", str(total)).partition("(")[0]
    local = int(os.environ.get("LOCAL_WORLD_SIZE", tasks.partition(",")[0]))
    count = -(-local // max(1, total // world))
    first = rank // count * count
    return list(range(first, min(first + count, world)))
