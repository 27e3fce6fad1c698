"""Batches through a node's cache: the same ones, within its limit, each chunk fetched once."""

import contextlib
import json
import os
import signal
import time
import zlib
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from tests.data_pipeline.caches import (
    BYTES,
    CHUNK_BYTES,
    CHUNKS,
    SAMPLES,
    SHARDS,
    Bytes,
    as_remote,
    audit,
    batches_of,
    large_set,
    look_ahead,
    read_in_step,
    remote_index,
    row_of,
    watch_disk,
)
from tests.ranks import SERVER, on_ranks
from tests.runs import vtx
from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.data_pipeline.batches import Batches
from vtx_scale.data_pipeline.book import cost
from vtx_scale.data_pipeline.cache import NAME, SPARE, NodeCache
from vtx_scale.data_pipeline.cached import Cached, source_for, whole_chunks
from vtx_scale.data_pipeline.chunks import Torn
from vtx_scale.data_pipeline.mix import Mix
from vtx_scale.data_pipeline.opening import open_index
from vtx_scale.data_pipeline.order import Order
from vtx_scale.data_pipeline.prefetch import Caching, shortage
from vtx_scale.data_pipeline.read import ChunkReader
from vtx_scale.data_pipeline.storage import File
from vtx_scale.data_pipeline.tools.bench import bench
from vtx_scale.data_pipeline.tools.shards import write_shard
from vtx_scale.data_pipeline.tools.warm import warm
from vtx_scale.launch.caching import ranks_here, shares_of

EPOCH = SHARDS * SAMPLES // 8  # steps
QUARTER = 16 << 20


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return large_set(tmp_path_factory.mktemp("shards"))


def rows_of(index, caching=None, steps=2 * EPOCH, rank=0, world=1):
    batches = batches_of(index, caching, rank, world)
    found = [row_of(Batch(**batches[step])) for step in range(steps)]
    batches.close()
    return found


@pytest.fixture(scope="module")
def expected(shards):
    """What the disk gives."""
    return rows_of(open_index(str(shards), chunk=SAMPLES // 2))


@pytest.mark.slow
def test_two_ranks_of_two_workers(shards, tmp_path):
    """The batches of the disk; never above the limit; each chunk is fetched once by the node where
    the limit allows that, and once an epoch but for a few where it is a quarter of the data.
    """
    local = open_index(str(shards), chunk=SAMPLES // 2)
    tries = []
    for limit in (QUARTER, 80 << 20):
        index = remote_index(shards, tmp_path / f"log{limit}", 0.002)
        assert NodeCache(tmp_path / f"{limit}", limit, index.digest).prepare() == ""
        most, stop = SERVER.Value("q", 0), SERVER.Event()
        watcher = SERVER.Process(target=watch_disk, args=(tmp_path / f"{limit}", most, stop))
        tries.append((index, Caching(tmp_path / f"{limit}", limit), most, stop, watcher))
        watcher.start()
    try:
        found = on_ranks(2, read_in_step, [t[:2] for t in tries], 2 * EPOCH, 2)
    finally:
        for _, _, _, stop, watcher in tries:
            stop.set()
            watcher.join()
    expected = [2 * [rows_of(local, rank=rank, world=2)] for rank in range(2)]
    assert found == expected
    for (index, caching, used, _, _), times in zip(tries, (2.2, 1), strict=True):
        assert min(caching.limit, 60 << 20) * 0.9 < used.value <= caching.limit
        asked = Counter((name, at) for _, name, at, _ in index.root.requests())
        assert len(asked) == CHUNKS
        assert asked.total() <= times * CHUNKS, asked.most_common(5)
        # a worker may be ended while it fetches ahead: who comes next clears up behind it
        left = NodeCache(caching.folder, caching.limit, index.digest)
        assert left.prepare() == ""
        audit(left)


def test_where_it_lies_and_how_it_is_read_changes_nothing(shards, tmp_path, expected):
    """A cache that is too small for what is in use, one beside local shards, and a lost file."""
    log = tmp_path / "log"
    index = remote_index(shards, log)
    assert rows_of(index, Caching(tmp_path / "sparse", 0, sparse=True)) == expected
    asked = index.root.requests()
    assert Counter(length for *_, length in asked if length > BYTES + 4096).total() == CHUNKS
    # a sample is one request: the first of a chunk is read of the whole
    assert len(asked) == CHUNKS + 2 * SHARDS * SAMPLES
    assert not (tmp_path / "sparse").exists()

    small = Caching(tmp_path / "small", SPARE + 5 * cost(CHUNK_BYTES))
    NodeCache(small.folder, small.limit, index.digest).prepare()
    assert rows_of(index, small) == expected
    audit(NodeCache(small.folder, small.limit, index.digest))

    local = open_index(str(shards), chunk=SAMPLES // 2)
    beside = Caching(tmp_path / "beside", QUARTER)
    NodeCache(beside.folder, beside.limit, local.digest).prepare()
    assert rows_of(local, beside) == expected
    assert len(list(beside.folder.iterdir())) > 20


def test_bytes_that_the_disk_changed_are_fetched_again(shards, tmp_path, expected):
    """The first use of a file in a process looks at its CRC."""
    index, caching = remote_index(shards, tmp_path / "log"), Caching(tmp_path / "c", 80 << 20)
    cache = NodeCache(caching.folder, caching.limit, index.digest)
    assert cache.prepare() == ""
    assert rows_of(index, caching) == expected
    assert len(index.root.requests()) == CHUNKS
    changed = range(0, CHUNKS, 10)
    for k in changed:
        with cache.path(k).open("r+b") as file:
            file.seek(BYTES)
            file.write(b"\xff" * 8)
    assert rows_of(index, caching) == expected
    assert len(index.root.requests()) == len(changed)
    audit(cache)


def test_a_file_that_was_fetched_again_is_checked_again(shards, tmp_path, monkeypatch):
    """A process that knows a chunk reads single samples of it, in whichever file it lies now."""
    index, caching = remote_index(shards, tmp_path / "log"), Caching(tmp_path / "c", 80 << 20)
    cache = NodeCache(caching.folder, caching.limit, index.digest)
    assert cache.prepare() == ""
    checked = []
    plain = Cached._sound
    monkeypatch.setattr(Cached, "_sound", lambda *a: checked.append(a[1]) or plain(*a))
    batches = batches_of(index, caching)
    source, _ = source_for(index, caching, 0, None, batches.start, 0)
    reader = ChunkReader(index, source=source)
    good = [reader.sample(g)["bin"] for g in range(SAMPLES // 2)]
    body = cache.path(0).read_bytes()
    for changed in (True, False):
        cache.path(0).unlink()  # another process needed its room
        source._let_go()
        cache.get(0, CHUNK_BYTES, lambda: body).close()
        if changed:
            with cache.path(0).open("r+b") as file:
                file.seek(BYTES // 2)
                file.write(bytes(4096))
        checked.clear()
        for _ in range(3):
            assert [reader.sample(g)["bin"] for g in range(SAMPLES // 2)] == good
            while source._files:  # more files were open than are kept
                source._files.popitem()[1].close()
        assert checked == ([0, 0] if changed else [0])
    reader.close()
    audit(cache)


def test_a_local_chunk_is_read_again_before_it_is_masked(shards, tmp_path, monkeypatch):
    """Through a cache as without one: what the memory of a machine or a mount gave wrong once."""
    index, plain, reads = open_index(str(shards), chunk=SAMPLES // 2), File.read, []

    def torn(self, offset, length):
        body = plain(self, offset, length)
        if length == CHUNK_BYTES and self.path.parent == shards:
            reads.append(offset)
            return bytes(length) if len(reads) <= wrong else body
        return body

    monkeypatch.setattr(File, "read", torn)
    for wrong in (3, 4):
        reads.clear()
        body = None
        with contextlib.suppress(Torn):
            body = whole_chunks(index)(0)
        assert len(reads) == 4
        assert (None if body is None else zlib.crc32(body)) == (
            int(index.chunk_crc[0]) if wrong < 4 else None
        )


def test_another_takes_over_when_the_prefetcher_dies(shards, tmp_path):
    """It fetches what the readers need next, which themselves read nothing here."""
    index, caching = remote_index(shards, tmp_path / "log"), Caching(tmp_path / "c", 80 << 20)
    cache = NodeCache(caching.folder, caching.limit, index.digest)
    assert cache.prepare() == ""
    step, stop = SERVER.Value("q", 0), SERVER.Event()
    readers = [
        SERVER.Process(target=look_ahead, args=(index, caching, step, stop)) for _ in range(2)
    ]
    for reader in readers:
        reader.start()
    plan, seen = batches_of(index, None).plan([0]), []
    try:
        for at in (0, 6):
            step.value = at
            needed = {k for s in range(at, at + 5) for k in plan.needs(s).tolist()}
            late = time.monotonic() + 30
            while time.monotonic() < late and not all(cache.path(k).exists() for k in needed):
                time.sleep(0.01)
            assert all(cache.path(k).exists() for k in needed)
            pids = {pid for pid, *_ in index.root.requests()}
            assert len(pids) == 1, "one fetches for all"
            seen += pids
            os.kill(seen[-1], signal.SIGKILL)
    finally:
        stop.set()
        for reader in readers:
            reader.kill()
            reader.join()
    assert seen[0] != seen[1]


def test_what_is_in_use_decides_whether_a_limit_is_too_small(shards, tmp_path):
    """As the plan says it, against counting what a pass has in use step by step."""
    index = remote_index(shards, tmp_path / "log")
    batches = batches_of(index, None)
    plan = batches.plan([0])
    first, last = {}, {}
    for step in range(EPOCH):
        for k in plan.needs(step).tolist():
            first.setdefault(k, step)
            last[k] = step
    in_use = max(sum(first[k] <= step <= last[k] for k in first) for step in range(EPOCH))
    need = shortage(plan, index.chunk_bytes, 0, 1)
    assert in_use * cost(CHUNK_BYTES) <= need <= 2 * in_use * cost(CHUNK_BYTES)
    assert shortage(plan, index.chunk_bytes, need, 1) == 0
    assert shortage(plan, index.chunk_bytes, need - 1, 1) == need


def test_a_bad_sample_is_the_same_one(shards, tmp_path):
    """Of a chunk whose bytes are not those that were indexed all samples are masked."""
    index = remote_index(shards, tmp_path / "log")
    index.chunk_crc = index.chunk_crc.copy()
    index.chunk_crc[7] ^= 1
    caching = Caching(tmp_path / "c", 80 << 20)
    cache = NodeCache(caching.folder, caching.limit, index.digest)
    assert cache.prepare() == ""
    batches = batches_of(index, caching)
    bad = [row for step in range(EPOCH) for row in batches[step]["bad"]]
    batches.close()
    assert len(bad) == SAMPLES // 2 and {row["reason"] for row in bad} == {"chunk_crc"}
    assert not cache.path(7).exists()
    audit(cache)


def test_a_long_chunk_of_a_bad_sample_holds_up_nobody(tmp_path, monkeypatch):
    """Nothing of it is kept: whoever fills a cache passes it, and fetches what comes behind it."""
    monkeypatch.setattr("vtx_scale.data_pipeline.tools.bench.ENOUGH", 0.01)
    rows = [(f"{i}", {"bin": np.random.default_rng(i).bytes(3 << 19)}) for i in range(6)]
    write_shard(tmp_path / "d" / "a.tar", rows)
    index = as_remote(open_index(str(tmp_path / "d"), chunk=1), tmp_path / "d", tmp_path / "log")
    index.bad = {3: "quarantined"}
    caching = Caching(tmp_path / "c", 80 << 20)
    cache = NodeCache(caching.folder, caching.limit, index.digest)
    assert cache.prepare() == ""
    order = Order(index.chunk_samples, 5, 1, 1)
    batches = Batches(index, order, Bytes(), 1, 0, 1, seed=5, caching=caching)
    due = order.ids(np.arange(6)).tolist().index(3)
    batches.chunks_at(due)
    ahead = order.ids(np.arange(due, due + 4)).tolist()
    late = time.monotonic() + 10
    while time.monotonic() < late and not all(cache.path(k).exists() for k in ahead if k != 3):
        time.sleep(0.01)
    assert all(cache.path(k).exists() == (k != 3) for k in ahead)
    time.sleep(0.1)
    batches.close()
    assert all(length > 1 << 20 for *_, length in index.root.requests()), "it was asked for"
    found = warm(cache, index, batches.plan([0]), range(6))
    assert found["steps"] == 6 and found["chunks"] == 5
    assert bench(batches, cache)["cache_mb_per_second"] > 0 and not cache.path(3).exists()
    audit(cache)


def test_two_runs_of_other_orders_share_a_cache(shards, tmp_path, monkeypatch):
    """One in its fourth epoch and one that begins: no sample is fetched alone, and few chunks are
    fetched for a second time in an epoch.
    """
    monkeypatch.setattr("vtx_scale.data_pipeline.prefetch.SAID", 0.02)
    index = remote_index(shards, tmp_path / "log")
    caching = Caching(tmp_path / "c", SPARE + 64 * cost(CHUNK_BYTES))
    cache = NodeCache(caching.folder, caching.limit, index.digest)
    assert cache.prepare() == ""
    old = batches_of(index, caching)
    young = replace(old, order=Order(index.chunk_samples, 6, 4, 8))
    steps = EPOCH // 2
    try:
        for step in range(steps):
            assert not old[3 * EPOCH + step]["bad"] and not young[step]["bad"]
            time.sleep(0.01)  # as a step takes
    finally:
        old.close()
        young.close()
    asked = [(name, at, length) for _, name, at, length in index.root.requests()]
    assert {length for *_, length in asked} == {CHUNK_BYTES}
    assert len(asked) < 1.25 * CHUNKS, len(asked)
    audit(cache)


def test_a_mix_through_a_cache(shards, tmp_path):
    """Two sources, a share of the limit each: the batches of the disk, within the limit."""
    local = open_index(str(shards / "s0*.tar"), chunk=SAMPLES // 2)
    other = open_index(str(shards / "s1*.tar"), chunk=SAMPLES // 2)
    remote = [as_remote(index, shards, tmp_path / "log") for index in (local, other)]
    weights = (49152, 16384)

    def rows(indexes, caching):
        mix = Mix([index.chunk_samples for index in indexes], 5, [(0, weights)], 4, 4)
        first, *more = indexes
        batches = Batches(first, mix, Bytes(), 8, 0, 1, 5, tuple(more), ("a", "b"), caching=caching)
        found = [row_of(Batch(**batches[step])) for step in range(50)]
        batches.close()
        return found

    limit = SPARE + 24 * cost(CHUNK_BYTES)
    caching = Caching(tmp_path / "c", limit, shares=(limit // 2, limit // 2))
    cache = NodeCache(caching.folder, limit, local.digest)
    assert cache.prepare() == ""
    assert rows(remote, caching) == rows([local, other], None)
    asked = remote[0].root.requests()
    assert len(asked) < 120, "a chunk is read whole, and few of them twice"
    assert cache.used() > limit // 2
    audit(cache)


def test_what_is_warm_is_fetched_no_more(shards, tmp_path):
    """The first steps, or as many of them as there is room for."""
    index = remote_index(shards, tmp_path / "log")
    plan = batches_of(index, None).plan([0])
    for chunks, steps in ((CHUNKS, 20), (20, 4)):
        caching = Caching(tmp_path / f"{chunks}", SPARE + chunks * cost(CHUNK_BYTES))
        cache = NodeCache(caching.folder, caching.limit, index.digest)
        assert cache.prepare() == ""
        found = warm(cache, index, plan, range(20))
        assert steps <= found["steps"] <= 20 and found["chunks"] <= chunks
        assert (found["steps"] == 20) == (chunks == CHUNKS)
        assert found["fetched"] == len(index.root.requests())
        needed = {int(k) for step in range(found["steps"]) for k in plan.needs(step)}
        assert all(cache.path(k).exists() for k in needed)
        audit(cache)
    again = warm(NodeCache(tmp_path / f"{CHUNKS}", 1 << 30, index.digest), index, plan, range(20))
    assert again["fetched"] == 0 and again["steps"] == 20


def test_what_bounds_a_recipe_is_said(shards, tmp_path, monkeypatch):
    """Where a fetch takes long, the fetch."""
    monkeypatch.setattr("vtx_scale.data_pipeline.tools.bench.ENOUGH", 0.1)
    slow, quick = (remote_index(shards, tmp_path / "log", wait) for wait in (0.05, 0.0))
    found = bench(batches_of(slow, None), None)
    assert found["bound"] == "fetch" and found["fetch_ms_median"] >= 50
    assert found["samples_per_cpu_second"] > 0 and "cache_mb_per_second" not in found
    cache = NodeCache(tmp_path / "c", 80 << 20, quick.digest)
    assert cache.prepare() == ""
    assert bench(batches_of(quick, None), cache)["cache_mb_per_second"] > 0


@pytest.mark.slow
def test_warm_as_a_user_types_it(shards, tmp_path):
    words = ["data", "warm", "clip_vit_b32", "--smoke", f"data.shards={shards}", "--steps", "3"]
    refused = vtx(*words)
    assert refused.returncode == 2 and "add system.cache.folder=FOLDER" in refused.stderr
    done = vtx(*words, "--world", "2", "--json", f"system.cache.folder={tmp_path / 'c'}")
    row = json.loads(done.stdout)
    assert done.returncode == 0 and row["steps"] == 3 and row["fetched"] == row["chunks"] > 0
    assert row["used"] <= row["limit"]
    assert len([p for p in (tmp_path / "c").iterdir() if NAME.match(p.name)]) == row["chunks"]


@pytest.mark.parametrize(
    ("environment", "rank", "world", "here"),
    [
        ({}, 0, 1, [0]),
        ({}, 1, 2, [0, 1]),
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}, 5, 8, [4, 5, 6, 7]),
        ({"WORLD_SIZE": "8", "SLURM_STEP_TASKS_PER_NODE": "2(x4)"}, 3, 8, [2, 3]),
        # two ranks share a batch
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}, 3, 4, [2, 3]),
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8"}, 0, 1, [0]),
    ],
)
def test_the_ranks_of_a_node(monkeypatch, environment, rank, world, here):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_STEP_TASKS_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert ranks_here(rank, world) == here


def test_a_small_source_leaves_its_share_to_the_others(shards):
    """Of a mix; what a source has at most is what its chunks count."""
    index = open_index(str(shards), chunk=SAMPLES // 2)
    small = open_index(str(shards / "s00.tar"), chunk=SAMPLES // 2)
    whole = SPARE + 2 * cost(CHUNK_BYTES)
    assert shares_of(QUARTER, [index]) == ()
    assert shares_of(QUARTER, [index, small]) == (QUARTER - whole, whole)
    assert shares_of(QUARTER, [index, index]) == (QUARTER // 2, QUARTER // 2)
