"""Which samples a set of shards holds, in which chunks: made once, beside the data or in the cache.

A sample's number counts through the shards in the order of their names. A chunk is consecutive samples of one
shard, at most C of them and 8 MiB, and is what is read, checked (CRC-32) and kept together.
"""

import hashlib
import mmap
import os
import struct
import zlib
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from data_pipeline.errors import UserError
from data_pipeline.storage import expand, short_hash
from data_pipeline.tar import COMPRESSED, Problem, samples

CHUNK, CAP = 256, 8 << 20
VERSION = "1"


@dataclass
class Index:
    """S shards, K chunks, N samples; see docs/data.md for the tensors. `keep` restricts it to some samples."""

    root: Path
    names: list[str]
    shard_bytes: NDArray
    shard_first: NDArray
    shard_chunks: NDArray
    shard_tag: NDArray  # mtime_ns: staleness only, not in the digest
    chunk_samples_all: NDArray
    chunk_bytes: NDArray
    chunk_crc: NDArray
    bad: dict[int, str] = field(default_factory=dict)
    keep: NDArray | None = None  # sorted sample numbers
    file: Path | None = None  # where the index itself is stored

    def __post_init__(self) -> None:
        first = np.repeat(np.cumsum([0, *self.shard_chunks])[:-1], self.shard_chunks)
        self.chunk_shard = np.repeat(np.arange(len(self.names)), self.shard_chunks)
        ends = np.concatenate([[0], np.cumsum(self.chunk_bytes.astype(np.int64))])
        self.chunk_offset = (ends[:-1] - ends[first] + self.shard_first[self.chunk_shard].astype(np.int64)).astype(np.int64)
        self.sample_first = np.concatenate([[0], np.cumsum(self.chunk_samples_all.astype(np.int64))])
        self._starts = self.sample_first.tolist()

    @property
    def n(self) -> int:
        """Samples, of a restricted index those that are kept."""
        return int(self.sample_first[-1]) if self.keep is None else len(self.keep)

    @property
    def chunk_samples(self) -> NDArray:
        """Samples a chunk (those kept), without empty chunks: what an order is made from."""
        if self.keep is None:
            return self.chunk_samples_all
        counts = np.diff(np.searchsorted(self.keep, self.sample_first))
        return counts[counts > 0]

    def number(self, g: int) -> int:
        """The sample's number in the whole set."""
        return g if self.keep is None else int(self.keep[g])

    def locate(self, g: int) -> tuple[int, int]:
        """(chunk, place in the chunk) of a sample of the whole set."""
        k = bisect_right(self._starts, g) - 1
        return k, g - self._starts[k]

    @property
    def digest(self) -> bytes:
        """SHA-256 of what decides the order and the bytes (paths and times are not in it)."""
        h = hashlib.sha256(b"vtx-index-1\0" + struct.pack("<QQ", len(self.names), len(self.chunk_bytes)))
        for array, dtype in ((self.shard_bytes, "<u8"), (self.shard_first, "<u8"), (self.shard_chunks, "<u4"),
                             (self.chunk_samples_all, "<u2"), (self.chunk_bytes, "<u4"), (self.chunk_crc, "<u4")):
            h.update(np.asarray(array).astype(dtype).tobytes())
        h.update("\n".join(self.names).encode())
        if self.keep is not None:
            h.update(b"keep\0" + self.keep.astype("<i8").tobytes())
        return h.digest()

    def split(self, share: float) -> tuple["Index", "Index"]:
        """(training, validation): a sample is held out where the SHA-256 of its key, in [0, 1), is below `share`.

        Raises UserError where one side would be empty.
        """
        from dataclasses import replace

        from data_pipeline.read import ChunkReader

        reader, held = ChunkReader(self), []
        for k in range(len(self.chunk_bytes)):
            for key in reader.keys(k):
                word = int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()[:8], "big")
                held.append(word / 2**64 < share)
        mask = np.array(held, bool)
        if mask.all() or not mask.any():
            raise UserError(f"data.hold_out={share} leaves one side of {self.n} samples empty: choose another share.")
        return replace(self, keep=np.flatnonzero(~mask)), replace(self, keep=np.flatnonzero(mask))


def scan(path: Path, chunk: int = CHUNK) -> tuple[int, list[tuple[int, int, int]], list[tuple[int, str]], list[Problem]]:
    """One shard: (offset of its first sample, [(samples, bytes, crc)], [(sample, reason)], problems)."""
    size = path.stat().st_size
    if size == 0:
        return 0, [], [], [Problem("tar_tail", 0, "the file is empty")]
    with path.open("rb") as f:
        data = memoryview(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ))  # unmapped with its last view
        for magic, kind in COMPRESSED.items():
            if data[: len(magic)] == magic:
                raise UserError(f"{path} is compressed with {kind}: unpack it first, samples are read by offset.")
        found, problems, end = [], [], 0
        for item in samples(data):
            if isinstance(item, Problem):
                problems.append(item)
            else:
                found.append(item)
        if not found:
            return 0, [], [], problems
        last = max(o + s for o, s in found[-1].members.values())
        end = min(size, -(-last // 512) * 512)
        starts = [s.start for s in found] + [end]
        chunks: list[tuple[int, int, int]] = []
        bad = [(i, s.reason) for i, s in enumerate(found) if s.reason]
        a = 0
        while a < len(found):
            b = a + 1
            while b < len(found) and b - a < chunk and starts[b + 1] - starts[a] <= CAP:
                b += 1
            extent = data[starts[a] : starts[b]]
            chunks.append((b - a, len(extent), zlib.crc32(extent)))
            a = b
        return starts[0], chunks, bad, problems


def build(paths: list[Path], chunk: int = CHUNK) -> Index:
    """Index shards by reading them once."""
    root = Path(os.path.commonpath([p.parent for p in paths]))
    ordered = sorted(paths, key=lambda p: p.relative_to(root).as_posix().encode("utf-8", "surrogateescape"))
    firsts, counts, rows, bad, total = [], [], [], {}, 0
    for path in ordered:
        first, chunks, wrong, _ = scan(path, chunk)
        firsts.append(first)
        counts.append(len(chunks))
        rows += chunks
        bad |= {total + i: reason for i, reason in wrong}
        total += sum(c[0] for c in chunks)
    table = np.array(rows, np.int64).reshape(-1, 3)
    return Index(root, [p.relative_to(root).as_posix() for p in ordered],
                 np.array([p.stat().st_size for p in ordered], np.uint64), np.array(firsts, np.uint64),
                 np.array(counts, np.uint32), np.array([p.stat().st_mtime_ns for p in ordered], np.uint64),
                 table[:, 0].astype(np.uint16), table[:, 1].astype(np.uint32), table[:, 2].astype(np.uint32), bad)


def save(index: Index, path: Path) -> None:
    """Write whole or not at all."""
    reasons = "\n".join(index.bad.values()).encode()
    tensors = {
        "names": np.frombuffer("\n".join(index.names).encode("utf-8", "surrogateescape"), np.uint8),
        "shard_bytes": index.shard_bytes, "shard_first": index.shard_first, "shard_chunks": index.shard_chunks,
        "shard_tag": index.shard_tag, "chunk_samples": index.chunk_samples_all, "chunk_bytes": index.chunk_bytes,
        "chunk_crc": index.chunk_crc, "bad_sample": np.array(list(index.bad), np.uint64),
        "bad_reason": np.frombuffer(reasons, np.uint8),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(tensors, part, metadata={"format": "vtx-index", "version": VERSION})
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read(path: Path, root: Path) -> Index:
    t = load_file(path)
    names = t["names"].tobytes().decode("utf-8", "surrogateescape").split("\n")
    reasons = t["bad_reason"].tobytes().decode().split("\n")
    bad = dict(zip(t["bad_sample"].tolist(), reasons, strict=False))
    return Index(root, names, t["shard_bytes"], t["shard_first"], t["shard_chunks"], t["shard_tag"], t["chunk_samples"],
                 t["chunk_bytes"], t["chunk_crc"], bad)


def fresh(index: Index) -> bool:
    """Whether every shard has the size and time that were indexed."""
    for name, size, tag in zip(index.names, index.shard_bytes, index.shard_tag, strict=True):
        try:
            stat = (index.root / name).stat()
        except OSError:
            return False
        if stat.st_size != size or stat.st_mtime_ns != tag:
            return False
    return True


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vtx-scale" / "index"


def open_index(shards: str, chunk: int = CHUNK, say: Callable[[str], None] = lambda line: None) -> Index:
    """The index of a shard list, made on first use; a stale one is made again with one line.

    Raises UserError where shards are missing, compressed or of a scheme that is not opened.
    """
    paths = expand(shards)
    root = Path(os.path.commonpath([p.parent for p in paths]))
    listed = "\n".join(sorted(p.relative_to(root).as_posix() for p in paths))
    name = f"index-{short_hash(f'{chunk}/{listed}')}.safetensors"
    beside, aside = root / ".vtx" / name, cache_folder() / short_hash(str(root)) / name
    for path in (beside, aside):
        if path.exists():
            try:
                index = read(path, root)
            except Exception as e:  # a torn or foreign file: made again, never trusted
                say(f"index {path} cannot be read ({type(e).__name__}): made again")
                break
            if fresh(index):
                index.file = path
                return index
            say(f"index {path} is stale (a shard changed): made again")
            break
    index = build(paths, chunk)
    try:
        save(index, beside)
        index.file = beside
    except OSError:  # read-only data
        save(index, aside)
        index.file = aside
    return index
