"""`vtx data verify`: every bad sample of a set of shards, and nothing that is sound."""

import mmap
from collections.abc import Iterator

from data_pipeline.decode import decode_image
from data_pipeline.errors import BadSample
from data_pipeline.storage import expand
from data_pipeline.tar import Problem, samples

IMAGES = ("jpg", "jpeg", "png", "webp")
TEXTS = ("txt", "json", "cls")


def verify(shards: str) -> Iterator[dict[str, str]]:
    """{"shard", "key", "reason"} a bad sample; a fault of the tar itself has the key "" and its reason."""
    for path in expand(shards):
        if path.stat().st_size == 0:
            yield {"shard": path.name, "key": "", "reason": "tar_tail"}
            continue
        with path.open("rb") as f:
            data = memoryview(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ))
            for item in samples(data):
                if isinstance(item, Problem):
                    if item.reason in ("tar_header", "tar_tail"):
                        yield {"shard": path.name, "key": "", "reason": item.reason}
                    continue
                reason = item.reason or fault({k: bytes(data[o : o + n]) for k, (o, n) in item.members.items()})
                if reason:
                    yield {"shard": path.name, "key": item.key, "reason": reason}


def fault(members: dict[str, bytes]) -> str:
    """Why a sample with these members cannot be used, or ""."""
    image = next((members[x] for x in IMAGES if x in members), None)
    if image is None or not any(x in members for x in TEXTS):
        return "member_missing"
    try:
        decode_image(image)
    except BadSample as e:
        return e.reason
    return "text" if "txt" in members and not members["txt"].strip() else ""
