"""`vtx data stats`: what a set holds in numbers, and what of it cannot be used."""

import base64
import hashlib
import io
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vtx_scale.data_pipeline.errors import BadSample
from vtx_scale.data_pipeline.index import Index
from vtx_scale.data_pipeline.members import caption, image
from vtx_scale.data_pipeline.pool import Pool
from vtx_scale.data_pipeline.read import ChunkReader
from vtx_scale.data_pipeline.tar import IMAGES
from vtx_scale.data_pipeline.tools.records import recorded
from vtx_scale.data_pipeline.tools.verify import looked_at

# where the bins of a histogram begin; the last has no end
EDGES: dict[str, list[float]] = {
    "side": [0, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096],
    "aspect": [0, 0.33, 0.5, 0.67, 0.75, 0.9, 1.1, 1.34, 1.5, 2, 3],
    "bytes": [0, *(1 << n for n in range(10, 25))],
    "caption": [0, 8, 16, 32, 64, 128, 256, 512, 1024],
}
NAMED = 50  # bad samples of a reason, and groups of duplicates, that are named
ALIKE = 10  # of a group
HASH = 8  # bytes of the SHA-256 of a picture by which two are the same


class Histogram:
    """Counts of values in bins, and their least, greatest and sum."""

    def __init__(self, name: str) -> None:
        self.edges = EDGES[name]
        self.counts = [0] * len(self.edges)
        self.low: float | None = None
        self.high: float | None = None
        self.total = 0.0

    def add(self, value: float) -> None:
        """One value, not below 0."""
        self.counts[bisect_right(self.edges, value) - 1] += 1
        self.low = value if self.low is None else min(self.low, value)
        self.high = value if self.high is None else max(self.high, value)
        self.total += value

    def merge(self, row: dict[str, Any]) -> None:
        """The values of another one, as `row` gives them."""
        if not sum(row["counts"]):
            return
        self.counts = [a + b for a, b in zip(self.counts, row["counts"], strict=True)]
        self.low = row["min"] if self.low is None else min(self.low, row["min"])
        self.high = row["max"] if self.high is None else max(self.high, row["max"])
        self.total += row["sum"]

    def row(self) -> dict[str, Any]:
        """{"edges", "counts", "min", "max", "sum"}."""
        return {
            "edges": self.edges,
            "counts": self.counts,
            "min": self.low,
            "max": self.high,
            "sum": self.total,
        }


@dataclass(frozen=True)
class Look:
    """Looks at the samples of one shard after the other."""

    index: Index

    def __call__(self, part: tuple[int, int]) -> dict[str, Any]:
        """What the samples a .. b-1 hold, as JSON; "hashes" has 8 bytes of each, zeros of one
        without a picture.
        """
        reader = ChunkReader(self.index)
        found = {name: Histogram(name) for name in EDGES}
        members: Counter[str] = Counter()
        bad: Counter[str] = Counter()
        named: list[list[str]] = []
        hashes = bytearray()
        for g in range(*part):
            digest, reason = bytes(HASH), ""
            try:
                sample = reader.sample(g)
                members.update(x for x in sample if not x.startswith("__"))
                reason, _ = looked_at(sample)
                if not reason:
                    digest = measure(sample, found)
            except BadSample as e:
                reason = e.reason
            hashes += digest
            if reason:
                bad[reason] += 1
                if bad[reason] <= NAMED:
                    named.append([reason, reader.id(g)])
        reader.close()
        return {
            "histograms": {name: h.row() for name, h in found.items()},
            "members": members,
            "bad": bad,
            "named": named,
            "hashes": base64.b64encode(hashes).decode(),
        }


def measure(sample: dict[str, Any], found: dict[str, Histogram]) -> bytes:
    """Add a sound sample to histograms; the hash of its picture, zeros where it has none (a clip,
    codes).
    """
    try:
        found["caption"].add(len(caption(sample)))
    except BadSample:
        pass  # it has none
    if not any(name in sample for name in IMAGES):
        return bytes(HASH)
    body = image(sample)
    with Image.open(io.BytesIO(body)) as picture:
        width, height = picture.size
    found["side"].add(min(width, height))
    found["aspect"].add(width / height)
    found["bytes"].add(len(body))
    return hashlib.sha256(body).digest()[:HASH]


def parts_of(index: Index) -> list[tuple[int, int]]:
    """The samples of each shard: (first, one behind the last)."""
    firsts = index.sample_first[index.chunk_first].tolist()
    return list(zip(firsts[:-1], firsts[1:], strict=True))


def stats(
    index: Index,
    workers: int | Pool,
    tick: Callable[[int], None] = lambda shards: None,
) -> dict[str, Any]:
    """What a set holds, as JSON: "shards", "samples", "bytes", "sound", "members", a histogram each
    of "side" (the shorter, in pixels), "aspect" (width by height), "bytes" (of a picture),
    "caption" (letters); "duplicates" by the content of pictures, and "bad" by reason.

    Every sample is read and its pictures are decoded, in `workers` processes a shard at a time.
    What is done of it is kept beside the index
    until all is. tick: is called with the shards that are done.
    """
    parts = parts_of(index)
    known = {"digest": index.digest.hex(), "bad": sorted(index.bad.items())}
    found = {name: Histogram(name) for name in EDGES}
    members: Counter[str] = Counter()
    bad: Counter[str] = Counter()
    named: dict[str, list[str]] = {}
    hashes: list[NDArray[np.uint64]] = []
    rows = recorded(Look(index), parts, workers, index.beside, "stats", known)
    for done, row in enumerate(rows, 1):
        for name, histogram in found.items():
            histogram.merge(row["histograms"][name])
        members.update(row["members"])
        bad.update(row["bad"])
        for reason, at in row["named"]:
            if len(named.setdefault(reason, [])) < NAMED:
                named[reason].append(at)
        hashes.append(np.frombuffer(base64.b64decode(row["hashes"]), np.uint64))
        tick(done)
    return {
        "shards": len(index.names),
        "samples": index.n,
        "bytes": int(index.shard_bytes.sum()),
        "digest": index.digest.hex()[:32],
        "sound": index.n - bad.total(),
        "members": dict(sorted(members.items())),
        "histograms": {name: h.row() for name, h in found.items()},
        "duplicates": duplicates(index, np.concatenate([np.zeros(0, np.uint64), *hashes])),
        "bad": {k: {"count": bad[k], "samples": named[k]} for k in sorted(bad)},
    }


def duplicates(index: Index, hashes: NDArray[np.uint64]) -> dict[str, Any]:
    """{"pictures": how many are again what an earlier one is, "groups": ids of the largest groups}.

    hashes: (N,), 0 of a sample without a picture.
    """
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))[: len(ordered)]
    counts = np.diff(np.concatenate([starts, [len(ordered)]]))
    several = (counts > 1) & (ordered[starts] != 0) if len(ordered) else counts > 1
    starts, counts = starts[several], counts[several]
    reader = ChunkReader(index)
    groups = []
    # the largest first, of the same size the one that begins first
    for k in np.lexsort((order[starts], -counts))[:NAMED].tolist():
        alike = order[starts[k] : starts[k] + min(int(counts[k]), ALIKE)]
        ids = [reader.id(g) for g in alike.tolist()]
        groups.append({"count": int(counts[k]), "samples": ids, "first": int(alike[0])})
    reader.close()
    return {"pictures": int((counts - 1).sum()), "groups": groups}
