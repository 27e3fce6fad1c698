"""Caches of small chunks, and processes that work on them."""

import os
import random
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from tests.ranks import gathered
from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.data_pipeline.batches import Batches
from vtx_scale.data_pipeline.book import cost
from vtx_scale.data_pipeline.cache import BOOK, NAME, SPARE, NodeCache
from vtx_scale.data_pipeline.index import Index
from vtx_scale.data_pipeline.loader import Loader
from vtx_scale.data_pipeline.opening import open_index
from vtx_scale.data_pipeline.order import Order
from vtx_scale.data_pipeline.prefetch import Caching
from vtx_scale.data_pipeline.storage import Folder, Head
from vtx_scale.data_pipeline.tools.shards import write_shard
from vtx_scale.data_pipeline.users import alive

LENGTH = 64 << 10
DIGEST = bytes(range(32))


def cache_of(folder: Path, chunks: int, digest: bytes = DIGEST) -> NodeCache:
    """With room for so many chunks."""
    cache = NodeCache(folder, SPARE + chunks * cost(LENGTH), digest)
    assert cache.prepare() == ""
    return cache


def body(k: int) -> bytes:
    return np.random.default_rng(k).bytes(LENGTH)


def fetched(k: int) -> Callable[[], bytes]:
    return lambda: body(k)


def disk_use(folder: Path) -> int:
    """Bytes of blocks, as du counts them: of what was there when the folder was listed."""
    total = 0
    for path in [folder, *folder.iterdir(), *(folder / "users").iterdir()]:
        try:
            total += os.lstat(path).st_blocks * 512
        except FileNotFoundError:
            continue
    return total


def watch_disk(folder: Path, most, stop) -> None:
    """Keeps the most that was used, looked at every 20 ms."""
    while not stop.is_set():
        most.value = max(most.value, disk_use(folder))
        time.sleep(0.02)


def fill_for_ever(cache: NodeCache, seed: float) -> None:
    rng = random.Random(seed)
    cache.enter(0)
    while True:
        k = rng.randrange(40)

        def slowly(k: int = k) -> bytes:
            time.sleep(rng.random() * 0.004)
            return body(k)

        file = cache.get(k, LENGTH, slowly, lambda chunks: (chunks * 7.0) % 41, rng.randrange(40))
        if file is not None:
            assert file.read(0, LENGTH) == body(k)
            file.close()


def audit(cache: NodeCache) -> None:
    """What is counted is there, what is there is counted, and nothing is half written."""
    with cache._book() as table:
        rows = table.rows[table.rows["bytes"] > 0]
        counted = {f"{int(r['set']):016x}-{int(r['chunk']):08d}": int(r["bytes"]) for r in rows}
        assert table.used == sum(map(cost, counted.values())) <= cache.limit
        there = {
            path.name: path.lstat().st_size
            for path in cache.folder.iterdir()
            if NAME.match(path.name) and path.is_file() and not path.is_symlink()
        }
        living = [name for name in there if name.endswith(".part")]
        assert not living, living
        assert there == counted
        assert (cache.folder / BOOK).stat().st_size <= 64 * 1024
        dead = [p.name for p in (cache.folder / "users").iterdir() if not alive(p)]
    assert len(dead) <= 8, dead


SHARDS, SAMPLES, BYTES = 64, 8, 128 << 10  # of 1 MiB each
CHUNKS, CHUNK_BYTES = 2 * SHARDS, 530432


class Elsewhere:
    """A folder as a bucket is: no `Folder`, and each request is a line in a log."""

    def __init__(self, root: Path, log: Path, wait: float = 0.0) -> None:
        self.folder, self.log, self.wait = Folder(root), log, wait

    def __str__(self) -> str:
        return "elsewhere"

    def get_range(self, name: str, offset: int, length: int, tag: str | None = None) -> bytes:
        line = f"{os.getpid()} {name} {offset} {length}\n".encode()
        fd = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, line)
        os.close(fd)
        time.sleep(self.wait)
        return self.folder.get_range(name, offset, length)

    def head(self, name: str) -> Head | None:
        found = self.folder.head(name)
        return found and Head(found.size, found.tag[:40])

    def requests(self) -> list[tuple[int, str, int, int]]:
        """(pid, name, offset, length) of each, and none from now on."""
        rows = [line.split() for line in self.log.read_text().splitlines()]
        self.log.unlink()
        return [(int(pid), name, int(at), int(length)) for pid, name, at, length in rows]


class Bytes:
    """The CRC-32 of a sample's bytes, and the numbers that it draws."""

    def blank(self):
        return {"crc": np.zeros((), np.int64), "drawn": np.zeros(2)}

    def __call__(self, members, draw):
        return {"crc": np.array(zlib.crc32(members["bin"])), "drawn": draw(0, 2)}


def large_set(folder: Path) -> Path:
    """64 shards of 1 MiB, of two chunks each."""
    for s in range(SHARDS):
        rng = np.random.default_rng(s)
        rows = [(f"{s}-{i}", {"bin": rng.bytes(BYTES), "cls": b"1"}) for i in range(SAMPLES)]
        write_shard(folder / f"s{s:02d}.tar", rows)
    return folder


def remote_index(folder: Path, log: Path, wait: float = 0.0) -> Index:
    """Of the same shards in another place; its requests are those of its chunks."""
    index = open_index(str(folder), chunk=SAMPLES // 2)
    return as_remote(index, folder, log, wait)


def as_remote(index: Index, folder: Path, log: Path, wait: float = 0.0) -> Index:
    """The same shards in another place."""
    root = Elsewhere(folder, log, wait)
    return replace(index, root=root, shard_tag=np.zeros_like(index.shard_tag))


def batches_of(index: Index, caching: Caching | None, rank: int = 0, world: int = 1) -> Batches:
    """8 slots; a dozen chunks are in use at a time, and 2 more for each step of a reader ahead."""
    order = Order(index.chunk_samples, 5, 4, 8)
    return Batches(index, order, Bytes(), 8, rank, world, seed=5, caching=caching)


def row_of(batch: Batch) -> tuple[bytes, ...]:
    return tuple(x.numpy().tobytes() for x in (batch.ids, batch["crc"], batch["drawn"]))


def read_in_step(
    sets: list[tuple[Index, Caching]], steps: int, workers: int
) -> list[list[tuple[bytes, ...]]]:
    """One rank's batches of each, each rank at the same step as the others."""
    dist = gathered()
    rank, world = dist.get_rank(), dist.get_world_size()
    found = []
    for index, caching in sets:
        loader = Loader(batches_of(index, caching, rank, world), stop=steps, workers=workers)
        rows = []
        for batch in loader:
            assert bool(batch.valid.all()), batch.bad
            rows.append(row_of(batch))
            dist.barrier()
        loader.close()
        found.append(rows)
    return found


def look_ahead(index: Index, caching: Caching, step, stop) -> None:
    """A reader that says at which step it is, and reads nothing."""
    batches = batches_of(index, caching)
    batches.chunk_reader()
    while not stop.is_set():
        batches.chunks_at(step.value)
        time.sleep(0.01)
