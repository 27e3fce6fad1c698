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

    told: hears how many steps are there. Returns `steps` that are there whole, the `chunks` that
    they need and how many were `fetched`. Raises UserError where a shard is gone or another,
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

    asked: list[tuple[int, int]] = []
    needed = first_uses(plan, steps)
    cache.enter(plan.ranks[0], steps.start)
    try:
        with ThreadPoolExecutor(FETCHES, "vtx-warm") as pool:
            while block := list(islice(needed, 4 * FETCHES)):
                asked += block
                if not all(list(pool.map(get, block))):
                    break
                told(block[-1][0] - steps.start)
    finally:
        cache.leave()
    # of chunks that are fetched side by side an earlier one may have made room in a later one
    for i, (step, k) in enumerate(asked):
        if not cache.path(k).exists():
            return {"steps": step - steps.start, "chunks": i, "fetched": fetched}
    return {"steps": len(steps), "chunks": len(asked), "fetched": fetched}


def first_uses(plan: Plan, steps: range) -> Iterator[tuple[int, int]]:
    """(step, chunk) of each chunk that these steps need, once."""
    seen: set[int] = set()
    for step in steps:
        for k in plan.needs(step).tolist():
            if k not in seen:
                seen.add(k)
                yield step, k
