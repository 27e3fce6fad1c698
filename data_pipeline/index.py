"""Which samples a set of shards holds, in which chunks: made once, beside the data or in the cache.

A sample's number counts through the shards in the order of their names. A chunk is
consecutive samples of one shard, at most C of them and 8 MiB, and is what is read, checked
(CRC-32) and kept together.
"""

import hashlib
import os
import struct
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.layout import Layout
from vtx_scale.data_pipeline.pool import Pool
from vtx_scale.data_pipeline.publish import whole
from vtx_scale.data_pipeline.scan import CAP, CHUNK, Scan, Told, scan, shown
from vtx_scale.data_pipeline.shards import Shards
from vtx_scale.data_pipeline.storage import Head, Storage, short_hash

VERSION = "2"
TAGS = {"1": 32, VERSION: 64}  # bytes a shard
TAG = TAGS[VERSION]
# known from headers alone, or by decision; numbered in the file
REASONS = ("", "tar_truncated", "member_size", "empty", "quarantined")
UNFINISHED = ".vtx/packing/plan.json"  # beside shards of which not all are there yet


@dataclass
class Index:
    """S shards, K chunks, N samples; see docs/data.md for the tensors. `open_index` makes one.

    root: where `names`, the shards in order, lie. A chunk is consecutive samples of one shard,
    chunks lie one behind the other; sizes and offsets are in bytes. bad: what headers alone say of
    a sample, and what is in quarantine. `keep` restricts it to some samples, which are numbered
    anew.
    """

    root: Storage
    names: list[str]
    shard_bytes: NDArray[np.uint64]  # (S,)
    shard_first: NDArray[np.uint64]  # (S,) offset of the first sample
    shard_chunks: NDArray[np.uint32]  # (S,)
    # (S, 64), mtime_ns or a storage's tag, and zeros: staleness only, not in the digest
    shard_tag: NDArray[np.uint8]
    chunk_samples_all: NDArray[np.uint16]  # (K,)
    chunk_bytes: NDArray[np.uint32]  # (K,)
    chunk_crc: NDArray[np.uint32]  # (K,)
    bad: dict[int, str] = field(default_factory=dict)  # sample number -> reason
    # sample number -> 2 for the second with its key in the shard
    again: dict[int, int] = field(default_factory=dict)
    keep: NDArray[np.int64] | None = None  # sorted sample numbers
    file: Path | str | None = None  # where the index itself is stored
    beside: tuple[Storage, str] | None = None  # its storage, and what names begin with there

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

    def url(self, shard: int) -> str:
        """The name of a shard for people."""
        return f"{self.root}/{self.names[shard]}"

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

    def only_bad(self, k: int) -> bool:
        """Whether chunk k holds one sample, which is known to be bad."""
        return int(self.sample_first[k]) in self.bad and int(self.chunk_samples_all[k]) == 1

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


def build(
    shards: Shards,
    chunk: int = CHUNK,
    say: Callable[[str], None] = lambda line: None,
    key: Callable[[str], None] | None = None,
    pool: Pool | None = None,
) -> Index:
    """Index shards by reading them once; what is wrong with a shard is said,
    a line each and then in counts. key: is given that of each sample in order. pool: reads a shard
    a unit. Raises UserError where one cannot be indexed.
    """
    reading = Reading(shards.root, chunk, key is not None)
    found = pool(reading, shards.names) if pool else map(reading.of, shards.files())
    scans: list[Scan] = []
    tags: list[NDArray[np.uint8]] = []
    bad: dict[int, str] = {}
    again: dict[int, int] = {}
    told = Told(say)
    total, layout = 0, Layout()
    for name, (one, tag) in zip(shards.names, found, strict=True):
        told.shard(name.rpartition("/")[2], one.problems, one.counts)
        layout.join(one.layout)
        if key:
            for word in one.keys:
                key(word)
        bad |= {total + i: reason for i, reason in one.bad.items()}
        again |= {total + i: times for i, times in one.again.items()}
        total += one.samples
        scans.append(replace(one, keys=[]))
        tags.append(tag)
    told.end()
    for sentence in layout.sentences():
        say(shown(sentence, 999))
    table = np.array([row for s in scans for row in s.chunks], np.int64).reshape(-1, 3)
    return Index(
        shards.root,
        shards.names,
        np.array([s.size for s in scans], np.uint64),
        np.array([s.first for s in scans], np.uint64),
        np.array([len(s.chunks) for s in scans], np.uint32),
        np.stack(tags),
        table[:, 0].astype(np.uint16),
        table[:, 1].astype(np.uint32),
        table[:, 2].astype(np.uint32),
        bad,
        again,
    )


@dataclass(frozen=True)
class Reading:
    """Reads one shard of a place. keys: whether those of its samples are wanted."""

    root: Storage
    chunk: int
    keys: bool

    def __call__(self, name: str) -> tuple[Scan, NDArray[np.uint8]]:
        """What a shard holds, and its tag. Raises UserError where it cannot be indexed."""
        (found,) = map(self.of, Shards(self.root, [name], "").files())
        return found

    def of(self, file: tuple[str, Path, Head | None]) -> tuple[Scan, NDArray[np.uint8]]:
        """The same of one that lies in a file: its name, the file, and what its storage says."""
        name, path, head = file
        found = scan(path, self.chunk, Shards(self.root, [], "").url(name), self.keys)
        return found, time_tag(found.mtime_ns) if head is None else remote_tag(head, name)


def time_tag(mtime_ns: int) -> NDArray[np.uint8]:
    """(64,): what tells that a local shard was written again."""
    return np.frombuffer(struct.pack("<q", mtime_ns).ljust(TAG, b"\0"), np.uint8)


def remote_tag(head: Head, name: str) -> NDArray[np.uint8]:
    """(64,): a storage's tag. Raises UserError for one that is longer or no ASCII."""
    if len(head.tag) > TAG or not head.tag.isascii():
        raise UserError(f"{name} has a tag of {len(head.tag)} letters: at most {TAG} are kept.")
    return np.frombuffer(head.tag.encode().ljust(TAG, b"\0"), np.uint8)


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
        about = {"format": "vtx-index", "version": VERSION, "cap": str(CAP)}
        save_file(tensors, part, metadata={**about, "sha256": sum_of(tensors)})


def sum_of(tensors: dict[str, NDArray[Any]]) -> str:
    """SHA-256 of all that an index holds."""
    whole = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        whole.update(f"{name} {tensor.nbytes}\n".encode())
        whole.update(np.ascontiguousarray(tensor).data)
    return whole.hexdigest()


def read(path: Path, root: Storage, names: list[str] | None = None) -> Index:
    """A stored index of these shards; without names, of those that it lists.

    Raises ValueError or what the container raises where it is torn or another's.
    """
    with safe_open(path, "numpy") as f:
        about = f.metadata() or {}
        if about.get("format") != "vtx-index" or about.get("version") not in TAGS:
            raise ValueError("no index of this version")
        t = {k: f.get_tensor(k) for k in f.keys()}
    if about.get("sha256", sum_of(t) if about["version"] == "1" else "") != sum_of(t):
        raise ValueError("a byte of it is another than the one that was written")
    known = t["names"].tobytes().decode("utf-8", "surrogateescape").split("\n")
    names = known if names is None else names
    shards, chunks, width = len(names), len(t["chunk_samples"]), TAGS[about["version"]]
    sound = (
        known == names
        and len(t["shard_tag"]) == width * shards
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
        np.pad(t["shard_tag"].reshape(-1, width), ((0, 0), (0, TAG - width))),
        t["chunk_samples"],
        t["chunk_bytes"],
        t["chunk_crc"],
        bad,
        again,
    )


def index_name(names: list[str], chunk: int) -> str:
    """The name of the index of these shards."""
    listed = "\n".join(names)
    return f"index-{short_hash(f'{chunk}/{listed}')}.safetensors"


def cache_folder() -> Path:
    """Where what belongs to shards is kept that nothing may be written beside."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vtx-scale" / "index"
