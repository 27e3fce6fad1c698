"""A node's cache, filled before a run begins."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

from vtx_scale.data_pipeline.cache import NodeCache
from vtx_scale.data_pipeline.cached import whole_chunks
from vtx_scale.data_pipeline.index import Index
from vtx_scale.data_pipeline.plan import Plan

FETCHES = 8  # at a time


def warm(
    cache: NodeCache,
    index: Index,
    plan: Plan,
    steps: range,
    told: Callable[[int], None] = lambda step: None,
) -> dict[str, Any]:
    """Fetch the chunks of these steps in the order of use, until there is no room for one.

    told: hears of each step that is there. Returns `steps` that are there whole, the `chunks` that
    they need and those that were `fetched`. Raises UserError where a shard is gone or another,
    OSError where a chunk cannot be read.
    """
    fetch, fetched = whole_chunks(index), 0

    def get(item: tuple[int, int]) -> bool:
        nonlocal fetched
        step, k = item
        length = int(index.chunk_bytes[k])
        there = cache.open(k, length) is not None
        file = cache.get(
            k,
            length,
            lambda: fetch(k),
            lambda chunks: plan.next_use(chunks, plan.own(steps.start * plan.batch)),
            plan.own(step * plan.batch),
        )
        fetched += not there and file is not None
        return file is not None

    whole, chunks = steps.start, 0
    needed = first_uses(plan, steps)
    cache.enter(plan.ranks[0], steps.start)
    try:
        with ThreadPoolExecutor(FETCHES, "vtx-warm") as pool:
            while block := list(islice(needed, 4 * FETCHES)):
                for (step, _), there in zip(block, pool.map(get, block), strict=True):
                    if not there:
                        return {"steps": step - steps.start, "chunks": chunks, "fetched": fetched}
                    chunks += 1
                    if step > whole:
                        whole = step
                        told(step - steps.start)
    finally:
        cache.leave()
    return {"steps": len(steps), "chunks": chunks, "fetched": fetched}


def first_uses(plan: Plan, steps: range) -> Iterator[tuple[int, int]]:
    """(step, chunk) of each chunk that these steps need, once."""
    seen: set[int] = set()
    for step in steps:
        for k in plan.needs(step).tolist():
            if k not in seen:
                seen.add(k)
                yield step, k
