"""Chunks through a node's cache, and samples one by one where there is no room for chunks."""

import contextlib
import os
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable
from typing import cast

import numpy as np

from vtx_scale.data_pipeline.cache import NodeCache
from vtx_scale.data_pipeline.chunks import (
    COPIES_KEPT,
    FETCHES,
    FILES_KEPT,
    Copies,
    Copy,
    Ranges,
    ShardFiles,
    Source,
    Torn,
    fetched_range,
    source_of,
)
from vtx_scale.data_pipeline.errors import notes
from vtx_scale.data_pipeline.index import Index
from vtx_scale.data_pipeline.plan import Plan
from vtx_scale.data_pipeline.prefetch import Caching, NodeChunks
from vtx_scale.data_pipeline.storage import File, Folder, Storage
from vtx_scale.data_pipeline.tar import Sample, samples

PASSED = 10.0  # seconds after which a chunk without room is offered to the cache again
CHUNKS_KNOWN = 8192  # of which a process knows where the samples lie


class Singles:
    """Chunks that are kept nowhere: the first read of one fetches it whole, and from then on its
    samples are fetched one by one, each held to the CRC-32 that it had in the whole.
    """

    by_sample = True

    def __init__(self, index: Index, root: Storage) -> None:
        self.index, self.root = index, root
        self._whole = Copies(index, root)
        # chunk -> place of a sample -> its length and CRC-32
        self._sums: OrderedDict[int, dict[int, tuple[int, int]]] = OrderedDict()

    def at(self, k: int) -> tuple[Ranges, int]:
        """What samples of a chunk are read of; see `Source`."""
        return Single(self, k), 0

    def forget(self, k: int) -> None:
        """Let the chunk be fetched whole again."""
        self._sums.pop(k, None)

    def close(self) -> None:
        """Drop what is known."""
        self._sums.clear()

    def read(self, k: int, offset: int, length: int) -> bytes:
        """Bytes of a chunk.

        Raises `Torn` for one that is not what was indexed, OSError for a sample that is not what it
        was, UserError as `Copies.fetch`.
        """
        size, crc = self._sums.get(k, {}).get(offset, (-1, 0))
        if size != length:
            body = self._whole.fetch(k)
            self._learn(k, body)
            return Copy(body).read(offset, length)
        body = fetched_range(self.index, self.root, k, offset, length)
        if zlib.crc32(body) != crc:
            url = self.index.url(self.index.extent(k)[0])
            raise OSError(f"{url}: a sample has another CRC-32 than when its chunk was read")
        return body

    def _learn(self, k: int, body: bytes) -> None:
        """Where the samples of a whole chunk lie."""
        found = self._sums[k] = {}
        self._sums.move_to_end(k)
        for sample in samples(memoryview(body)):
            if isinstance(sample, Sample) and sample.members:
                spans = list(sample.members.values())
                begin, end = spans[0][0], spans[-1][0] + spans[-1][1]
                found[begin] = end - begin, zlib.crc32(memoryview(body)[begin:end])
        if len(self._sums) > CHUNKS_KNOWN:
            self._sums.popitem(last=False)


class Single:
    """What samples of one chunk are read of."""

    def __init__(self, singles: Singles, k: int) -> None:
        self.singles, self.k = singles, k

    def read(self, offset: int, length: int) -> bytes:
        """Raises as `Singles.read`."""
        return self.singles.read(self.k, offset, length)


class Cached:
    """Chunks from files of the node's cache; where there is no room for one, from `beside`.

    Who asks for a chunk for the first time checks its CRC-32. A file that was fetched anew since
    then is checked here, once, since its reader knows the chunk and looks at samples alone.
    """

    by_sample = True

    def __init__(self, index: Index, node: NodeChunks, beside: Source) -> None:
        self.index, self.node, self.beside = index, node, beside
        self._files: OrderedDict[int, File] = OrderedDict()
        self._passed: dict[int, float] = {}  # chunk -> when there was no room for it
        self._asked = np.zeros(len(index.chunk_bytes), bool)  # (K,)
        # chunk -> inode and time of the file that was checked
        self._checked: OrderedDict[int, tuple[int, int]] = OrderedDict()

    def at(self, k: int) -> tuple[Ranges, int]:
        """The file of a chunk; see `Source`."""
        if k in self._files:
            self._files.move_to_end(k)
            return self._files[k], 0
        if self.index.only_bad(k):
            return self.beside.at(k)
        passed = self._passed.get(k)
        if passed is not None and time.monotonic() - passed < PASSED:
            return self.beside.at(k)
        file = self._open(k)
        if file is None:
            if passed is None:
                notes["cache_passed"] += 1
            self._passed[k] = time.monotonic()
            return self.beside.at(k)
        if self._passed.pop(k, None) is not None:
            self.beside.forget(k)
        self._let_go()
        self._files[k] = file
        return file, 0

    def _open(self, k: int) -> File | None:
        """The file of a chunk, of which this process or its caller checks the CRC-32; None where
        there is no room for it, or the disk changes what is written.
        """
        for _ in range(FETCHES):
            if (file := self.node.open(k)) is None:
                return None
            name = os.fstat(file.fd).st_ino, file.mtime_ns
            if not self._asked[k] or self._checked.get(k) == name or self._sound(k, file):
                self._asked[k] = True
                self._checked[k] = name
                self._checked.move_to_end(k)
                if len(self._checked) > CHUNKS_KNOWN:
                    self._checked.popitem(last=False)
                return file
            self.node.cache.drop(k, file)
        return None

    def _sound(self, k: int, file: File) -> bool:
        with contextlib.suppress(OSError):
            return zlib.crc32(file.read(0, file.size)) == int(self.index.chunk_crc[k])
        return False

    def _let_go(self) -> None:
        """Close what was deleted, whose room it still takes, and what is open longest."""
        for k in [k for k, file in self._files.items() if file.deleted]:
            self._files.pop(k).close()
        if len(self._files) >= FILES_KEPT:
            self._files.popitem(last=False)[1].close()

    def forget(self, k: int) -> None:
        """Its file may not be what was written: let it be looked at, and fetched again."""
        self._checked.pop(k, None)
        if (file := self._files.pop(k, None)) is not None:
            file.close()
        else:
            self.beside.forget(k)

    def close(self) -> None:
        """Close the files, and let another process fetch ahead."""
        self.node.close()
        self.beside.close()
        while self._files:
            self._files.popitem()[1].close()


def whole_chunks(index: Index) -> Callable[[int], bytes]:
    """Chunk k's bytes, its CRC-32 checked, from where it lies; for any thread.

    It raises `Torn` for a chunk that is not what was indexed, OSError for one that cannot be read,
    UserError where its shard is gone or another.
    """
    root, mine = index.root, threading.local()

    def fetch(k: int) -> bytes:
        if not isinstance(root, Folder):
            if not hasattr(mine, "copies"):
                mine.copies = Copies(index, root)
            return cast(Copies, mine.copies).fetch(k)
        if not hasattr(mine, "files"):
            mine.files = ShardFiles(index, root)
        files = cast(ShardFiles, mine.files)
        for attempt in range(FETCHES):
            if attempt:
                files.forget(k)
            file, base = files.at(k)
            body = file.read(base, int(index.chunk_bytes[k]))
            if zlib.crc32(body) == int(index.chunk_crc[k]):
                return body
        raise Torn(index.url(index.extent(k)[0]), body)

    return fetch


def source_for(
    index: Index,
    caching: Caching | None,
    number: int,
    plan: Callable[[list[int]], Plan] | None,
    start: Callable[[int], int],
    rank: int,
    order: int = 0,
) -> tuple[Source, NodeChunks | None]:
    """Where one process reads chunks, and its part in the node's cache where there is one.

    number: of the source, where there are several. plan, start, rank: as `NodeChunks` has them;
    without a plan samples come in tar order. order: `order_key` of the run.
    """
    root = index.root
    beside: Source = source_of(index)
    if plan is not None and not isinstance(root, Folder):
        if caching is not None or plan([rank]).working_set(index.chunk_bytes, 0) > COPIES_KEPT:
            beside = Singles(index, root)
    if caching is None or caching.sparse:
        return beside, None
    share = caching.shares[number] if caching.shares else None
    cache = NodeCache(caching.folder, caching.limit, index.digest, share, order)
    node = NodeChunks(cache, index.chunk_bytes, whole_chunks(index), plan, start, rank)
    return Cached(index, node, beside), node
