"""When chunks are needed, as the order's own positions say it one by one."""

import zlib
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data_pipeline.caches import LENGTH, audit, body, cache_of
from vtx_scale.data_pipeline.index import Index
from vtx_scale.data_pipeline.order import Order
from vtx_scale.data_pipeline.plan import Plan
from vtx_scale.data_pipeline.storage import Folder


def index_of(sizes: list[int], length: int = 1 << 20) -> Index:
    """One shard of chunks of so many samples, by arithmetic."""
    count = len(sizes)
    return Index(
        Folder(Path("nowhere")),
        ["a.tar"],
        np.array([count * length], np.uint64),
        np.zeros(1, np.uint64),
        np.array([count], np.uint32),
        np.zeros((1, 64), np.uint8),
        np.array(sizes, np.uint16),
        np.full(count, length, np.uint32),
        np.full(count, zlib.crc32(b""), np.uint32),
    )


def uses_of(index: Index, order: Order, positions: np.ndarray) -> np.ndarray:
    """The chunk at each position, one by one."""
    return np.array([index.locate(int(g))[0] for g in order.ids(positions)])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=20),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 2**64 - 1),
    st.data(),
)
def test_the_plan_knows_when_a_chunk_is_needed(sizes, lanes, window, seed, data):
    """Never later than it is, about a window of all lanes from a use of it, and dead where it is
    dead.
    """
    index = index_of(sizes)
    order = Order(index.chunk_samples, seed, lanes, window)
    n, near = order.n, lanes * (window + 2)
    end = data.draw(st.none() | st.integers(1, 3 * n))
    plan = Plan(index, order, 3, [0], 1, end)
    at = data.draw(st.integers(0, 2 * n - 1))
    positions = np.arange(max(0, at - near), 2 * n + at // n * n)
    uses = uses_of(index, order, positions)
    found = plan.next_use(np.arange(len(sizes)), at)
    for k in range(len(sizes)):
        true = positions[(uses == k) & (positions >= at)][0]
        assert found[k] <= true or (end is not None and true >= end)
        if np.isinf(found[k]):
            assert end is not None and true >= end
        elif max(sizes) < n // lanes:  # else a chunk holds whole lanes
            assert np.abs(positions[uses == k] - found[k]).min() <= near


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=2, max_size=20),
    st.integers(1, 8),
    st.integers(1, 12),
    st.integers(1, 4),
    st.data(),
)
def test_the_plan_of_a_node_is_that_of_its_ranks(sizes, lanes, batch, world, data):
    index = index_of(sizes)
    order = Order(index.chunk_samples, 7, lanes, 4)
    ranks = data.draw(st.sets(st.integers(0, world - 1), min_size=1))
    plan = Plan(index, order, batch, ranks, world)
    for step in range(5):
        shares = np.concatenate([order.share(step, batch, rank, world) for rank in ranks])
        assert set(plan.needs(step).tolist()) == set(
            uses_of(index, order, shares[shares >= 0]).tolist()
        )


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=6, max_size=20),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 20),
)
def test_what_is_in_use_holds_what_each_batch_needs(sizes, lanes, batch, first):
    """Of two steps, wherever they lie; and nothing that is needed neither a window before nor a
    window behind them.
    """
    index = index_of(sizes)
    order = Order(index.chunk_samples, 7, lanes, 4)
    plan = Plan(index, order, batch, [0], 1)
    begin, end = first * batch, (first + 2) * batch - 1
    found = set(plan.in_use(begin, end).tolist())
    assert {k for step in (first, first + 1) for k in plan.needs(step).tolist()} <= found
    near = lanes * 6
    around = np.arange(max(0, begin - near), end + near)
    if max(sizes) < order.n // lanes:  # else a chunk holds whole lanes
        assert found <= set(uses_of(index, order, around).tolist())


def test_a_cyclic_pass_has_hits(tmp_path):
    """Three epochs through a cache of a quarter: what is needed last goes first, so that much of
    an epoch's end serves the next one; a cache that drops what was used longest ago would fetch
    all but a few of them anew.
    """
    index = index_of([4] * 64)
    order, batch = Order(index.chunk_samples, 1, 2, 4), 8
    cache, count = cache_of(tmp_path / "c", 16), 0
    plan = Plan(index, order, batch, [0], 1)

    def fetch(k):
        nonlocal count
        count += 1
        return body(k)

    for step in range(3 * order.n // batch):
        for k in plan.needs(step).tolist():
            uses = lambda chunks, at=step * batch: plan.next_use(chunks, at)  # noqa: E731
            file = cache.get(k, LENGTH, lambda k=k: fetch(k), uses, step * batch)
            assert file is not None and file.read(0, LENGTH) == body(k)
            file.close()
    assert count <= 64 * 3 - 2 * 10, count
    audit(cache)
