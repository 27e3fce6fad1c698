"""Which samples a set of shards holds, in which chunks: made once, beside the data or in the cache.

A sample's number counts through the shards in the order of their names. A chunk is
consecutive samples of one shard, at most C of them and 8 MiB, and is what is read, checked
(CRC-32) and kept together.
"""

import hashlib
import os
import struct
import zlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.foreign import not_a_tar
from vtx_scale.data_pipeline.layout import Layout
from vtx_scale.data_pipeline.lists import expand
from vtx_scale.data_pipeline.storage import File, short_hash, whole
from vtx_scale.data_pipeline.tar import BLOCK, Problem, samples

CHUNK, CAP = 256, 8 << 20
EXTENT_LIMIT = 1 << 32
VERSION = "1"
TAG = 32  # bytes a shard
# known from headers alone; numbered in the file
REASONS = ("", "tar_truncated", "member_size", "empty")
PROBLEMS_SHOWN = 20  # lines a reason, then counts


@dataclass
class Index:
    """S shards, K chunks, N samples; see docs/data.md for the tensors. `open_index` makes one.

    root: the folder that `names`, the shards in order, are relative to. A chunk is consecutive
    samples of one shard, chunks lie one behind the other; sizes and offsets are in bytes. bad: what
    headers alone say of a sample. `keep` restricts it to some samples, which are numbered anew.
    """

    root: Path
    names: list[str]
    shard_bytes: NDArray[np.uint64]  # (S,)
    shard_first: NDArray[np.uint64]  # (S,) offset of the first sample
    shard_chunks: NDArray[np.uint32]  # (S,)
    # (S, 32), mtime_ns and zeros: staleness only, not in the digest
    shard_tag: NDArray[np.uint8]
    chunk_samples_all: NDArray[np.uint16]  # (K,)
    chunk_bytes: NDArray[np.uint32]  # (K,)
    chunk_crc: NDArray[np.uint32]  # (K,)
    bad: dict[int, str] = field(default_factory=dict)  # sample number -> reason
    # sample number -> 2 for the second with its key in the shard
    again: dict[int, int] = field(default_factory=dict)
    keep: NDArray[np.int64] | None = None  # sorted sample numbers
    file: Path | None = None  # where the index itself is stored

    def __post_init__(self) -> None:
        # (S + 1,)
        self.chunk_first = np.concatenate([[0], np.cumsum(self.shard_chunks.astype(np.int64))])
        first = np.repeat(self.chunk_first[:-1], self.shard_chunks)
        self.chunk_shard = np.repeat(np.arange(len(self.names)), self.shard_chunks)
        ends = np.concatenate([[0], np.cumsum(self.chunk_bytes.astype(np.int64))])
        self.chunk_offset = (
            ends[:-1] - ends[first] + self.shard_first[self.chunk_shard].astype(np.int64)
        )
        self.sample_first = np.concatenate(
            [[0], np.cumsum(self.chunk_samples_all.astype(np.int64))]
        )
        # for single look-ups: numbers out of a view come three times as fast as out of an array
        self._sample_first, self._chunk_shard = self.sample_first.data, self.chunk_shard.data
        self._chunk_offset = self.chunk_offset.data

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}  # the rest follows from these

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__post_init__()

    @property
    def n(self) -> int:
        """Samples, of a restricted index those that are kept."""
        return int(self.sample_first[-1]) if self.keep is None else len(self.keep)

    @property
    def chunk_samples(self) -> NDArray[np.integer[Any]]:
        """(K,) samples a chunk (those kept), without empty chunks: what an order is made from."""
        if self.keep is None:
            return self.chunk_samples_all
        counts = np.diff(np.searchsorted(self.keep, self.sample_first))
        return counts[counts > 0]

    def number(self, g: int) -> int:
        """The number in the whole set of sample g, which `keep` may number otherwise."""
        return g if self.keep is None else int(self.keep[g])

    def locate(self, g: int) -> tuple[int, int]:
        """(chunk, place in the chunk) of sample g of the whole set."""
        k = bisect_right(self._sample_first, g) - 1
        return k, g - self._sample_first[k]

    def extent(self, k: int) -> tuple[int, int]:
        """(shard, offset in bytes) of chunk k."""
        return self._chunk_shard[k], self._chunk_offset[k]

    @property
    def digest(self) -> bytes:
        """SHA-256 of what decides the order and the bytes (paths and times are not in it)."""
        h = hashlib.sha256(
            b"vtx-index-1\0" + struct.pack("<QQ", len(self.names), len(self.chunk_bytes))
        )
        for array, dtype in (
            (self.shard_bytes, "<u8"),
            (self.shard_first, "<u8"),
            (self.shard_chunks, "<u4"),
            (self.chunk_samples_all, "<u2"),
            (self.chunk_bytes, "<u4"),
            (self.chunk_crc, "<u4"),
        ):
            h.update(np.asarray(array).astype(dtype).tobytes())
        h.update("\n".join(self.names).encode("utf-8", "surrogateescape"))
        if self.keep is not None:
            h.update(b"keep\0" + self.keep.astype("<i8").tobytes())
        return h.digest()

    def keys(self) -> Iterator[str]:
        """The key of every sample of the whole set, from the headers alone.

        Raises UserError where they changed.
        """
        expected = np.diff(self.sample_first[self.chunk_first])
        for name, count in zip(self.names, expected.tolist(), strict=True):
            with open_shard(self.root / name) as shard:
                found = [item.key for item in samples(shard) if not isinstance(item, Problem)]
            if len(found) != count:
                raise UserError(
                    f"{self.root / name} holds {len(found)} samples and held {count} when it was "
                    "indexed: put the shard back, or remove its index to begin anew."
                )
            yield from found

    def split(self, share: float) -> tuple["Index", "Index"]:
        """(training, validation): a sample is held out where the SHA-256 of its key, in [0, 1),
        is below `share`.

        Both are restrictions of this one, which must be whole; the keys are read from the headers
        once. Raises UserError where one side would be empty.
        """
        which = (self.digest, share)
        if which not in _splits:
            words = (
                hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
                for key in self.keys()
            )
            mask = np.array(
                [int.from_bytes(word[:8], "big") / 2**64 < share for word in words], bool
            )
            if mask.all() or not mask.any():
                raise UserError(
                    f"data.hold_out={share} leaves one side of {self.n} samples empty: "
                    "give another share."
                )
            _splits.clear()
            _splits[which] = np.flatnonzero(~mask), np.flatnonzero(mask)
        kept, held = _splits[which]
        return replace(self, keep=kept), replace(self, keep=held)


# the last: every evaluation asks again
_splits: dict[tuple[bytes, float], tuple[NDArray[np.int64], NDArray[np.int64]]] = {}


@dataclass(frozen=True)
class Scan:
    """One shard as its headers and bytes say."""

    size: int
    mtime_ns: int
    first: int  # offset of its first sample
    chunks: list[tuple[int, int, int]]  # samples, bytes, CRC-32
    bad: dict[int, str]  # place in the shard -> reason
    again: dict[int, int]
    problems: list[Problem]  # the first of each reason
    counts: Counter[str]  # all of them

    @property
    def samples(self) -> int:
        return sum(c[0] for c in self.chunks)


def open_shard(path: Path) -> File:
    """A tar for reading. Raises UserError for a compressed one, for what is something else,
    and for what cannot be opened.
    """
    try:
        shard = File(path)
    except PermissionError as e:
        raise UserError(f"{path} cannot be opened ({e.strerror}): look at its mode.") from None
    if fault := not_a_tar(path, shard[:BLOCK]):
        shard.close()
        raise UserError(fault)
    return shard


def crc(shard: File, offset: int, length: int) -> int:
    value = 0
    for at in range(offset, offset + length, CAP):
        value = zlib.crc32(shard.read(at, min(CAP, offset + length - at)), value)
    return value


def scan(path: Path, chunk: int = CHUNK, layout: Layout | None = None) -> Scan:
    """Read one shard. layout: looks at its samples. Raises UserError where it cannot be indexed."""
    layout = layout or Layout()
    layout.begin(shown(path.name))
    problems: list[Problem] = []
    counts: Counter[str] = Counter()
    starts: list[int] = []
    bad: dict[int, str] = {}
    again: dict[int, int] = {}
    keys: Counter[str] = Counter()
    end = 0
    with open_shard(path) as shard:
        if not len(shard):
            problems, counts = [Problem("tar_tail", 0, "the file is empty")], Counter(tar_tail=1)
        for item in samples(shard):
            if isinstance(item, Problem):
                counts[item.reason] += 1
                if counts[item.reason] <= PROBLEMS_SHOWN:
                    problems.append(item)
                continue
            layout.add(item)
            keys[item.key] += 1
            if keys[item.key] > 1:
                again[len(starts)] = keys[item.key]
            if item.reason:
                bad[len(starts)] = item.reason
            starts.append(item.start)
            end = item.end
        chunks: list[tuple[int, int, int]] = []
        n, a = len(starts), 0
        if n:
            starts.append(min(len(shard), -(-end // 512) * 512))
        while a < n:
            b = a + 1
            while b < n and b - a < chunk and starts[b + 1] - starts[a] <= CAP:
                b += 1
            extent = starts[b] - starts[a]
            if extent >= EXTENT_LIMIT:
                raise UserError(
                    f"{path}: the sample at byte {starts[a]} spans {extent} bytes, "
                    "4 GiB is the limit: write the shard without it."
                )
            chunks.append((b - a, extent, crc(shard, starts[a], extent)))
            a = b
        return Scan(
            len(shard), shard.mtime_ns, starts[0] if n else 0, chunks, bad, again, problems, counts
        )


class Told:
    """Says what is wrong with shards, the first of each reason; `end` gives the counts."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.counts: Counter[str] = Counter()

    def __call__(self, shard: str, problem: Problem) -> None:
        """The next problem, of the shard of this name."""
        self.counts[problem.reason] += 1
        if self.counts[problem.reason] <= PROBLEMS_SHOWN:
            line = f"{shard} byte {problem.offset}: {problem.reason} {shown(problem.detail)}"
            self.say(line.rstrip())

    def end(self) -> None:
        """How many of each reason there were, where not all were shown."""
        if any(v > PROBLEMS_SHOWN for v in self.counts.values()):
            self.say("in all: " + ", ".join(f"{v} {k}" for k, v in sorted(self.counts.items())))


def build(
    paths: list[Path], chunk: int = CHUNK, say: Callable[[str], None] = lambda line: None
) -> Index:
    """Index shards by reading them once; what is wrong with a shard is said,
    a line each and then in counts.
    """
    root, ordered = in_order(paths)
    scans: list[Scan] = []
    bad: dict[int, str] = {}
    again: dict[int, int] = {}
    told = Told(say)
    total, layout = 0, Layout()
    for path in ordered:
        found = scan(path, chunk, layout)
        for problem in found.problems:
            told(path.name, problem)
        told.counts.update(
            {k: v - sum(p.reason == k for p in found.problems) for k, v in found.counts.items()}
        )
        bad |= {total + i: reason for i, reason in found.bad.items()}
        again |= {total + i: times for i, times in found.again.items()}
        total += found.samples
        scans.append(found)
    told.end()
    for sentence in layout.sentences():
        say(shown(sentence, 999))
    table = np.array([row for s in scans for row in s.chunks], np.int64).reshape(-1, 3)
    return Index(
        root,
        [p.relative_to(root).as_posix() for p in ordered],
        np.array([s.size for s in scans], np.uint64),
        np.array([s.first for s in scans], np.uint64),
        np.array([len(s.chunks) for s in scans], np.uint32),
        np.stack([tag(s.mtime_ns) for s in scans]),
        table[:, 0].astype(np.uint16),
        table[:, 1].astype(np.uint32),
        table[:, 2].astype(np.uint32),
        bad,
        again,
    )


def in_order(paths: list[Path]) -> tuple[Path, list[Path]]:
    """(the folder that shards have in common, the shards by the bytes of their names below it)."""
    root = Path(os.path.commonpath([p.parent for p in paths]))
    return root, sorted(
        paths, key=lambda p: p.relative_to(root).as_posix().encode("utf-8", "surrogateescape")
    )


def tag(mtime_ns: int) -> NDArray[np.uint8]:
    """(32,): what tells that a local shard was written again."""
    return np.frombuffer(struct.pack("<q", mtime_ns).ljust(TAG, b"\0"), np.uint8)


def shown(name: str, letters: int = 256) -> str:
    """A name from a tar as it is printed and kept in the ledger:
    no control characters, at most so many letters.
    """
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:letters]
    )


def save(index: Index, path: Path) -> None:
    """Write whole or not at all."""
    bad, again = sorted(index.bad.items()), sorted(index.again.items())
    tensors: dict[str, NDArray[Any]] = {
        "names": np.frombuffer("\n".join(index.names).encode("utf-8", "surrogateescape"), np.uint8),
        "shard_bytes": index.shard_bytes,
        "shard_first": index.shard_first,
        "shard_chunks": index.shard_chunks,
        "shard_tag": index.shard_tag.reshape(-1),
        "chunk_samples": index.chunk_samples_all,
        "chunk_bytes": index.chunk_bytes,
        "chunk_crc": index.chunk_crc,
        "bad_sample": np.array([g for g, _ in bad], np.uint64),
        "bad_reason": np.array([REASONS.index(r) for _, r in bad], np.uint8),
        "again_sample": np.array([g for g, _ in again], np.uint64),
        "again_times": np.array([t for _, t in again], np.uint32),
    }
    with whole(path) as part:
        save_file(
            tensors, part, metadata={"format": "vtx-index", "version": VERSION, "cap": str(CAP)}
        )


def read(path: Path, root: Path, names: list[str]) -> Index:
    """A stored index of these shards.

    Raises ValueError or what the container raises where it is torn or another's.
    """
    with safe_open(path, "numpy") as f:
        about = f.metadata() or {}
        if about.get("format") != "vtx-index" or about.get("version") != VERSION:
            raise ValueError("no index of this version")
        t = {k: f.get_tensor(k) for k in f.keys()}
    shards, chunks = len(names), len(t["chunk_samples"])
    sound = (
        t["names"].tobytes().decode("utf-8", "surrogateescape").split("\n") == names
        and len(t["shard_tag"]) == TAG * shards
        and int(t["shard_chunks"].sum()) == chunks
        and all(len(t[k]) == shards for k in ("shard_bytes", "shard_first", "shard_chunks"))
        and all(len(t[k]) == chunks for k in ("chunk_bytes", "chunk_crc"))
        and all(0 < r < len(REASONS) for r in t["bad_reason"].tolist())
    )
    if not sound:
        raise ValueError("an index of other shards")
    bad = {
        g: REASONS[r]
        for g, r in zip(t["bad_sample"].tolist(), t["bad_reason"].tolist(), strict=True)
    }
    again = dict(zip(t["again_sample"].tolist(), t["again_times"].tolist(), strict=True))
    return Index(
        root,
        names,
        t["shard_bytes"],
        t["shard_first"],
        t["shard_chunks"],
        t["shard_tag"].reshape(-1, TAG),
        t["chunk_samples"],
        t["chunk_bytes"],
        t["chunk_crc"],
        bad,
        again,
    )


def fresh(index: Index) -> bool:
    """Whether every shard has the size and time that were indexed."""
    for name, size, known in zip(
        index.names, index.shard_bytes.tolist(), index.shard_tag, strict=True
    ):
        try:
            stat = (index.root / name).stat()
        except OSError:
            return False
        if stat.st_size != size or tag(stat.st_mtime_ns).tobytes() != known.tobytes():
            return False
    return True


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vtx-scale" / "index"


def open_index(
    shards: str, chunk: int = CHUNK, say: Callable[[str], None] = lambda line: None
) -> Index:
    """The index of a shard list, made on first use; a stale one is made again with one line.

    shards: a folder, a brace pattern, a glob, or a list of these apart by commas or `::`. chunk:
    the most samples of a chunk. say: takes a line for people. It lies in `.vtx` beside the first
    shard, or in the cache where that cannot be written, and nowhere where there is no sample; an
    index that is read costs no look into the shards but their sizes and times. Raises UserError
    where shards are missing, compressed, something else or of a scheme that is not opened.
    """
    root, paths = in_order(expand(shards, say))
    names = [p.relative_to(root).as_posix() for p in paths]
    listed = "\n".join(names)
    name = f"index-{short_hash(f'{chunk}/{listed}')}.safetensors"
    cached = cache_folder() / short_hash(str(root)) / name
    # a folder that holds folders of shards is not ours to write to
    places = [(root / names[0]).parent / ".vtx" / name, cached]
    news = ""
    # the first version wrote there
    for path in dict.fromkeys([root / ".vtx" / name, *places]):
        if path.exists():
            try:
                index = read(path, root, names)
            except Exception as e:  # a torn or foreign file: made again, never trusted
                news = f"index {path} cannot be read ({e}): made again"
                continue
            if fresh(index):
                index.file = path
                return index
            news = f"index {path} is stale (a shard changed): made again"
    if news:
        say(news)
    index = build(paths, chunk, say)
    if not index.n:  # a mistake, which leaves nothing behind
        return index
    for path in places:
        try:
            save(index, path)
        except OSError:  # a read-only folder
            continue
        index.file = path
        return index
    say(
        f"the index could not be stored ({places[-1].parent} is not writable): "
        "it is made again at each start"
    )
    return index
