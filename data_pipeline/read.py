"""Reading samples by number: a chunk is mapped, its CRC checked once a process, its headers walked once."""

import mmap
import zlib
from collections import OrderedDict
from dataclasses import dataclass

from data_pipeline.errors import BadSample
from data_pipeline.index import Index
from data_pipeline.tar import Sample, samples

CHUNKS_KEPT = 4096
FILES_KEPT = 64


@dataclass(slots=True)
class Chunk:
    """A verified chunk: its samples with offsets from its beginning, or why it cannot be used."""

    found: list[Sample]
    reason: str = ""


class ChunkReader:
    """Samples of an index. Holds memory maps: made in the process that uses it."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self._files: OrderedDict[int, mmap.mmap] = OrderedDict()
        self._chunks: OrderedDict[int, Chunk] = OrderedDict()
        self._seen: dict[int, dict[str, int]] = {}

    def _file(self, shard: int) -> mmap.mmap:
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        with (self.index.root / self.index.names[shard]).open("rb") as f:
            self._files[shard] = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        if len(self._files) > FILES_KEPT:
            self._files.popitem(last=False)[1].close()
        return self._files[shard]

    def _bytes(self, k: int, offset: int, length: int) -> bytes:
        """Bytes of chunk k, counted from its beginning."""
        base = int(self.index.chunk_offset[k]) + offset
        return self._file(int(self.index.chunk_shard[k]))[base : base + length]

    def _chunk(self, k: int) -> Chunk:
        if k in self._chunks:
            self._chunks.move_to_end(k)
            return self._chunks[k]
        made = self._read_chunk(k)
        self._chunks[k] = made
        if len(self._chunks) > CHUNKS_KEPT:
            self._chunks.popitem(last=False)
        return made

    def _read_chunk(self, k: int) -> Chunk:
        try:
            body = self._bytes(k, 0, int(self.index.chunk_bytes[k]))
        except (OSError, ValueError):
            return Chunk([], "read_error")
        if zlib.crc32(body) != int(self.index.chunk_crc[k]):
            return Chunk([], "chunk_crc")
        found = [s for s in samples(memoryview(body), whole=False) if isinstance(s, Sample)]
        if len(found) != int(self.index.chunk_samples_all[k]):
            return Chunk([], "chunk_walk")
        return Chunk(found)

    def sample(self, g: int) -> tuple[str, dict[str, bytes]]:
        """(key, extension -> bytes) of sample g of the (restricted) index. Raises BadSample."""
        g = self.index.number(g)
        if g in self.index.bad:
            raise BadSample(self.index.bad[g])
        k, i = self.index.locate(g)
        chunk = self._chunk(k)
        if chunk.reason:
            raise BadSample(chunk.reason)
        sample = chunk.found[i]
        if sample.reason:
            raise BadSample(sample.reason)
        return sample.key, {x: self._bytes(k, o, n) for x, (o, n) in sample.members.items()}

    def keys(self, k: int) -> list[str]:
        """Keys of chunk k of the whole set; a chunk that cannot be read has numbered ones."""
        chunk = self._chunk(k)
        if chunk.reason:
            return [f"?{k}-{i}" for i in range(int(self.index.chunk_samples_all[k]))]
        return [s.key for s in chunk.found]

    def id(self, g: int) -> str:
        """`part-000.tar/key`; the second sample with a key in its shard is `key#2`."""
        k, i = self.index.locate(self.index.number(g))
        shard = int(self.index.chunk_shard[k])
        names = self.keys(k)
        if i >= len(names):
            return f"{self.index.names[shard]}/?{k}-{i}"
        key = names[i]
        earlier = self._counts_before(shard, k).get(key, 0) + names[: i + 1].count(key)
        return f"{self.index.names[shard]}/{key}" + (f"#{earlier}" if earlier > 1 else "")

    def _counts_before(self, shard: int, k: int) -> dict[str, int]:
        """How often each key stands in the shard before chunk k."""
        if k not in self._seen:
            counts: dict[str, int] = {}
            begin = int(self.index.shard_chunks[:shard].sum())
            for c in range(begin, k):
                for key in self.keys(c):
                    counts[key] = counts.get(key, 0) + 1
            self._seen[k] = counts
        return self._seen[k]
