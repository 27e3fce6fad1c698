"""`vtx data inspect`: what shards hold."""

from collections import Counter
from typing import Any

from vtx_scale.data_pipeline.errors import BadSample
from vtx_scale.data_pipeline.members import caption
from vtx_scale.data_pipeline.opening import open_index
from vtx_scale.data_pipeline.order import defaults
from vtx_scale.data_pipeline.read import ChunkReader
from vtx_scale.data_pipeline.shards import Shards


def inspect(shards: str | Shards, look: int = 1000) -> dict[str, Any]:
    """Counts of the whole set, and the members of its first `look` samples."""
    index = open_index(shards)
    reader, first = ChunkReader(index), ""
    members: Counter[str] = Counter()
    for g in range(min(index.n, look)):
        try:
            sample = reader.sample(g)
        except BadSample:
            continue
        members.update(x for x in sample if not x.startswith("__"))
        try:
            first = first or caption(sample)
        except BadSample:
            continue
    lanes, window = defaults(max(1, index.n))
    return {
        "shards": len(index.names),
        "samples": index.n,
        "bytes": int(index.shard_bytes.sum()),
        "chunks": len(index.chunk_bytes),
        "known_bad": len(index.bad),
        "members": dict(members),
        "lanes": lanes,
        "window": window,
        "digest": index.digest.hex()[:32],
        "caption": first,
    }
