"""`vtx data verify`: every bad sample of a set of shards, and nothing that is sound."""

from collections import Counter
from collections.abc import Iterator, Mapping

from vtx_scale.data_pipeline import members as sample
from vtx_scale.data_pipeline.decode import decode_image
from vtx_scale.data_pipeline.errors import BadSample
from vtx_scale.data_pipeline.index import common_root, open_shard, shown
from vtx_scale.data_pipeline.storage import expand
from vtx_scale.data_pipeline.tar import Problem, samples


def verify(shards: str) -> Iterator[dict[str, str]]:
    """{"shard", "key", "reason"} a bad sample; a fault of the tar itself has the key ""
    and its reason.
    """
    paths = expand(shards)
    root = common_root(paths)
    for path in paths:
        name = shown(path.relative_to(root).as_posix())
        counts: Counter[str] = Counter()
        with open_shard(path) as shard:
            if not len(shard):
                yield {"shard": name, "key": "", "reason": "tar_tail"}
            for item in samples(shard):
                if isinstance(item, Problem):
                    if item.reason in ("tar_header", "tar_tail"):
                        yield {"shard": name, "key": "", "reason": item.reason}
                    continue
                counts[item.key] += 1
                times = counts[item.key]
                reason = item.reason or fault(
                    {k: shard.read(o, n) for k, (o, n) in item.members.items()}
                )
                if reason:
                    yield {
                        "shard": name,
                        "key": shown(item.key) + (f"#{times}" if times > 1 else ""),
                        "reason": reason,
                    }


def fault(members: Mapping[str, bytes]) -> str:
    """Why a sample with these members cannot be used, or ""."""
    try:
        decode_image(sample.image(members))
        if not any(x in members for x in sample.TEXTS):
            raise BadSample("member_missing", "text or class")
        if "txt" in members:
            sample.text(members["txt"])
        if "json" in members:
            sample.about(members)
        sample.label(members)
    except BadSample as e:
        return e.reason
    return ""
