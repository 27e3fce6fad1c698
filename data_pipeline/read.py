"""Reading samples by number: a chunk is read and its CRC checked once a process,
then its samples by offset.
"""

import time
import zlib
from array import array
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vtx_scale.data_pipeline.chunks import (
    NAMES_ONLY,
    Copy,
    Ranges,
    Source,
    Torn,
    Unfetched,
    source_of,
)
from vtx_scale.data_pipeline.errors import BadSample, UserError
from vtx_scale.data_pipeline.index import Index
from vtx_scale.data_pipeline.scan import shown
from vtx_scale.data_pipeline.tar import Sample, samples

CHUNKS_KEPT = 4096
READS = 4  # of a chunk whose CRC differs or that cannot be read, before its samples are masked
UNREADABLE, SECONDS = 3, 60.0  # so many chunks that cannot be read in so short a time end the run

# of the disk or the server and not of a sample: another look may find it sound
PASSING = ("read_error", "chunk_crc", "chunk_walk")

Draw = Callable[[int, int], NDArray[np.float64]]  # (view, n) -> n numbers in [0, 1)
Row = dict[str, NDArray[Any]]  # what a reader makes of a sample


def unread(where: str, reason: str) -> UserError:
    """For a command that keeps what it makes: what is to be done about a sample that could not be
    read. where: its id.
    """
    return UserError(
        f"{where} could not be read ({reason}), which may pass: look at the disk and the memory, "
        "then run the same command again; where that does not help, copy the shard there anew."
    )


class Members(dict[str, Any]):
    """A sample: `__key__`, `__url__`, and extension -> bytes.

    What it lacks makes it a bad sample, not a KeyError.
    """

    def __missing__(self, name: str) -> Any:
        raise BadSample("member_missing", name)


@dataclass(slots=True)
class Chunk:
    """A chunk as a table of some 12 KB: where keys and members lie, or why it cannot be used.

    Sample i has keys[key_end[i-1] : key_end[i]] and the members first[i] .. first[i+1]; member m
    has the extension `kinds[kind[m]]` and lies at spots[2m], spots[2m+1] bytes long.
    """

    reason: str = ""
    keys: str = ""
    key_end: "array[int]" = field(default_factory=lambda: array("I", [0]))
    starts: "array[int]" = field(default_factory=lambda: array("I"))
    first: "array[int]" = field(default_factory=lambda: array("I", [0]))
    kind: "array[int]" = field(default_factory=lambda: array("I"))
    spots: "array[int]" = field(default_factory=lambda: array("I"))

    def __len__(self) -> int:
        return len(self.starts)

    def key(self, i: int) -> str:
        return self.keys[self.key_end[i] : self.key_end[i + 1]]


class ChunkReader:
    """Samples of an index. Holds descriptors and tables: made in the process that uses it.

    chunks: how many tables to keep; an order's lanes decide how many are in use at a time. source:
    where the chunks are read, by default their shards themselves.
    """

    def __init__(
        self, index: Index, chunks: int = CHUNKS_KEPT, source: Source | None = None
    ) -> None:
        self.index = index
        self._kept = chunks
        self._source = source or source_of(index)
        self._chunks: OrderedDict[int, Chunk] = OrderedDict()
        self._kinds: dict[str, int] = {}
        self._names: list[str] = []
        self._unreadable: dict[int, float] = {}  # chunk -> when it could not be read
        self._urls = [index.url(shard) for shard in range(len(index.names))]

    def close(self) -> None:
        self._source.close()

    def _chunk(self, k: int) -> Chunk:
        if k in self._chunks:
            self._chunks.move_to_end(k)
            return self._chunks[k]
        chunk = self._chunks[k] = self._read_chunk(k)
        if len(self._chunks) > self._kept:
            self._chunks.popitem(last=False)
        return chunk

    def _read_chunk(self, k: int) -> Chunk:
        length = int(self.index.chunk_bytes[k])
        body, reason = b"", ""
        if self.index.only_bad(k):
            # it may be as long as a disk: nothing of it is used but its name
            length = min(length, NAMES_ONLY)
            reason = "bad"
        for attempt in range(READS):
            try:
                if attempt:
                    self._source.forget(k)
                file, base = self._source.at(k)
                body = file.read(base, length)
            except Torn as e:
                body, reason = e.body, "chunk_crc"
                break
            except Unfetched:
                reason = "read_error"
                break
            except OSError:
                reason = "read_error"
                continue
            if reason == "bad" or zlib.crc32(body) == int(self.index.chunk_crc[k]):
                reason = ""
                break
            reason = "chunk_crc"
        if reason == "read_error":
            self._count_unreadable(k)
        found = [s for s in samples(memoryview(body)) if isinstance(s, Sample)]
        if len(found) != int(self.index.chunk_samples_all[k]):
            return Chunk(reason or "chunk_walk")
        return self._table(found, reason)

    def _table(self, found: list[Sample], reason: str) -> Chunk:
        chunk = Chunk(reason, "".join(s.key for s in found))
        at = 0
        for s in found:
            at += len(s.key)
            chunk.key_end.append(at)
            chunk.starts.append(s.start)
            for extension, (offset, size) in s.members.items():
                if extension not in self._kinds:
                    self._kinds[extension] = len(self._names)
                    self._names.append(extension)
                chunk.kind.append(self._kinds[extension])
                chunk.spots.append(offset)
                chunk.spots.append(min(size, 0xFFFFFFFF))  # what is longer is known to be bad
            chunk.first.append(len(chunk.kind))
        return chunk

    def _count_unreadable(self, k: int) -> None:
        now = time.monotonic()
        self._unreadable.setdefault(k, now)
        if sum(now - t < SECONDS for t in self._unreadable.values()) >= UNREADABLE:
            raise UserError(
                f"{UNREADABLE} chunks could not be read within a minute, the last of "
                f"{self._urls[self.index.extent(k)[0]]}: "
                "look at the disk or the mount, then run the same command again."
            )

    def sample(self, g: int) -> Members:
        """Sample g of the (restricted) index. Raises BadSample."""
        g = self.index.number(g)
        if g in self.index.bad:
            raise BadSample(self.index.bad[g])
        k, i = self.index.locate(g)
        chunk = self._chunk(k)
        if chunk.reason:
            raise BadSample(chunk.reason)
        out = Members(__key__=chunk.key(i), __url__=self._urls[self.index.extent(k)[0]])
        names, spots = self._names, chunk.spots
        file: Ranges
        try:
            file, base = self._source.at(k)
            first, behind = chunk.first[i], chunk.first[i + 1]
            if self._source.by_sample and behind > first:
                begin, end = spots[2 * first], spots[2 * behind - 2] + spots[2 * behind - 1]
                file, base = Copy(file.read(base + begin, end - begin)), -begin
            for m in range(first, behind):
                out[names[chunk.kind[m]]] = file.read(base + spots[2 * m], spots[2 * m + 1])
        except OSError as e:
            self._count_unreadable(k)
            raise BadSample("read_error", str(e)) from None
        return out

    def place(self, g: int) -> dict[str, Any]:
        """{"shard", "key", "offset"} of a sample; a chunk whose headers cannot be read
        has numbered keys.

        The second sample with a key in its shard is `key#2`.
        """
        g = self.index.number(g)
        k, i = self.index.locate(g)
        chunk, (shard, offset) = self._chunk(k), self.index.extent(k)
        known = i < len(chunk)
        key, times = chunk.key(i) if known else f"?{k}-{i}", self.index.again.get(g, 1)
        return {
            "shard": shown(self.index.names[shard]),
            "key": shown(key) + (f"#{times}" if times > 1 else ""),
            "offset": offset + (chunk.starts[i] if known else 0),
        }

    def id(self, g: int) -> str:
        """`part-000.tar/key`."""
        at = self.place(g)
        return f"{at['shard']}/{at['key']}"
