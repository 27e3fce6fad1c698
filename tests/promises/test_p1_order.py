"""P1, the same samples: the order against golden vectors and against a second implementation
in plain Python.
"""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtx_scale.data_pipeline.batches import uniforms
from vtx_scale.data_pipeline.index import Index
from vtx_scale.data_pipeline.order import Order, defaults, draws

MASK = 2**64 - 1


def philox(key, counter):
    """Philox4x64-10 (Salmon et al. 2011): four words."""
    c, k = counter, key
    for _ in range(10):
        p, q = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = ((q >> 64) ^ c[1] ^ k[0], q & MASK, (p >> 64) ^ c[3] ^ k[1], p & MASK)
        k = ((k[0] + 0x9E3779B97F4A7C15) & MASK, (k[1] + 0xBB67AE8584CAA73B) & MASK)
    return c


def words(seed, purpose, a, b, c, n):
    return [w for i in range(1, n // 4 + 2) for w in philox((seed, purpose), (i, a, b, c))][:n]


def shuffled(items, keys):
    return [x for _, x in sorted(zip(keys, items, strict=True), key=lambda pair: pair[0])]


def cut(shards, size):
    """Samples a chunk, of shards with these numbers of samples."""
    return [min(size, n - a) for n in shards for a in range(0, n, size)]


def mirrored(lane, lanes):
    bits = (lanes - 1).bit_length()
    return int(f"{lane:0{bits}b}"[::-1], 2) if bits else 0


def epoch_by_hand(shards, size, lanes, window, seed, epoch, source=0):
    """The samples of an epoch in the order of their positions,
    step by step as docs/data.md tells it.
    """
    chunks, first = [], 0
    for n in cut(shards, size):
        chunks.append(list(range(first, first + n)))
        first += n
    keys = words(seed, 1 + 256 * source, 0, 0, epoch, len(chunks))
    row = [g for chunk in shuffled(chunks, keys) for g in chunk]
    dealt = []
    for lane in range(lanes):
        begin = sum(len(row) // lanes + (x < len(row) % lanes) for x in range(lane))
        mine = row[begin : begin + len(row) // lanes + (lane < len(row) % lanes)]
        phase = mirrored(lane, lanes) * window // 2 ** (lanes - 1).bit_length()
        windows = {}
        for j, g in enumerate(mine):
            windows.setdefault((j + phase) // window, []).append(g)
        dealt.append(
            [
                g
                for w, part in windows.items()
                for g in shuffled(part, words(seed, 2 + 256 * source, w, lane, epoch, len(part)))
            ]
        )
    return [dealt[p % lanes][p // lanes] for p in range(len(row))]


def slots_by_hand(n, lanes, step, batch):
    """Positions of a batch by slot."""
    return sorted(
        range(step * batch, (step + 1) * batch), key=lambda p: (mirrored(p % n % lanes, lanes), p)
    )


CASES = st.fixed_dictionaries(
    {
        "shards": st.lists(st.integers(1, 14), min_size=1, max_size=6),
        "size": st.integers(1, 16),
        "lanes": st.integers(1, 40),
        "window": st.integers(1, 20),
        "seed": st.integers(0, MASK),
    }
)


def order_of(case):
    return Order(cut(case["shards"], case["size"]), case["seed"], case["lanes"], case["window"])


@pytest.mark.parametrize(
    ("arguments", "known"),
    [
        (
            (0, 1, 0, 0, 0, 5),
            "d037f8c3f9a1d176 c057419b4c210765 abf13115117b0065 7bae035dea6ea5c0 b487ac82e7ddd46f",
        ),
        (
            (42, 2, 3, 4, 5, 4),
            "4536132ffa9aa2ea 45f6116d7b243491 bb6a319e0c5ab03e f300a4a2fe29b001",
        ),
    ],
)
def test_words(arguments, known):
    assert [f"{x:016x}" for x in draws(*arguments)] == known.split()
    assert [f"{x:016x}" for x in words(*arguments)] == known.split()


VECTORS = [
    (
        (5, 3, 4),
        2,
        2,
        3,
        0,
        "9bf4ca821274a1d3e6dda9e2b5ab5a6185da76849c06cbcf1bf623ef5575c769",
        (5, 3, 9, 2, 8, 0, 4, 10, 6, 1, 7, 11),
        (2, 7, 0, 10, 1, 5, 9, 11, 8, 4, 3, 6),
    ),
    (
        (7,),
        3,
        4,
        2,
        2**63 + 5,
        "43e12b93f4c0ae6c2f3a646a6d0d19d227cfaafdaf878839edacf4be3d4e960a",
        (6, 4, 1, 2, 3, 5, 0),
        (6, 1, 3, 5, 0, 2, 4),
    ),
    (
        (*[10] * 10, 1, 1, 1),
        4,
        8,
        5,
        42,
        "87f6b494d469509c51a0753a3b6d4c744dac8ad88764359c47bb962d8068f597",
        (14, 37, 78, 10, 73, 52, 94, 92, 16, 35, 79, 57, 8, 53, 6, 58),
        (50, 57, 100, 36, 40, 17, 97, 2, 51, 55, 93, 35, 42, 24, 96, 60),
    ),
]


@pytest.mark.parametrize(
    ("shards", "size", "lanes", "window", "seed", "digest", "epoch_0", "epoch_1"), VECTORS
)
def test_golden_vectors(shards, size, lanes, window, seed, digest, epoch_0, epoch_1):
    order = Order(cut(shards, size), seed, lanes, window)
    ids = order.ids(np.arange(2 * order.n))
    assert hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest() == digest
    assert (
        tuple(ids[: len(epoch_0)]) == epoch_0 and tuple(ids[order.n :][: len(epoch_1)]) == epoch_1
    )
    by_hand = [g for e in range(2) for g in epoch_by_hand(shards, size, lanes, window, seed, e)]
    assert ids.tolist() == by_hand


def test_golden_digest_and_fingerprint():
    """Of the first vector's shards, with given names, sizes and checksums."""
    samples = cut((5, 3, 4), 2)
    assert samples == [2, 2, 1, 2, 1, 2, 2]
    index = Index(
        Path("/"),
        ["a.tar", "b.tar", "c.tar"],
        np.array([6144, 4096, 5120], np.uint64),
        np.zeros(3, np.uint64),
        np.array([3, 2, 2], np.uint32),
        np.zeros((3, 32), np.uint8),
        np.array(samples, np.uint16),
        np.array(samples, np.uint32) * np.uint32(1024),
        np.arange(7, dtype=np.uint32),
    )
    assert index.digest.hex() == "8f1e6b0fe74781812ad3bd88c79b1fc34d5447c88d97d8c773b4c3e18bbef5fc"
    assert Order(samples, 0, 2, 3).fingerprint([index.digest]) == "acbdea2261c63dacad9a16fb220be576"
    others = {
        Order(samples, *other).fingerprint([index.digest])
        for other in ((1, 2, 3), (0, 1, 3), (0, 2, 4))
    }
    index.shard_tag[:] = 7  # when a shard was written is not in it, what it holds is
    assert index.digest.hex().startswith("8f1e6b0f")
    index.chunk_crc[3] ^= 1
    others.add(Order(samples, 0, 2, 3).fingerprint([index.digest]))
    assert len(others) == 4 and "acbdea2261c63dacad9a16fb220be576" not in others


@settings(max_examples=150, deadline=None)
@given(CASES)
def test_two_implementations_agree_and_every_sample_comes_once_an_epoch(case):
    order = order_of(case)
    ids = order.ids(np.arange(3 * order.n)).reshape(3, order.n)
    for epoch in range(3):
        assert ids[epoch].tolist() == epoch_by_hand(**case, epoch=epoch)
        assert sorted(ids[epoch].tolist()) == list(range(sum(case["shards"])))


@settings(max_examples=100, deadline=None)
@given(CASES, st.integers(1, 130), st.data())
def test_a_global_batch_is_the_same_for_every_world(case, batch, data):
    """Slots depend on step and batch alone; ranks take them in order,
    and what is missing is padding at the end.
    """
    order = order_of(case)
    steps = -(-2 * order.n // batch) + 1
    for step in (0, steps - 1, data.draw(st.integers(0, steps - 1))):
        slots = slots_by_hand(order.n, order.lanes, step, batch)
        for world in range(1, 17):
            fresh = order_of(case)  # another process knows nothing of this one
            shares = [fresh.share(step, batch, rank, world) for rank in range(world)]
            assert {len(s) for s in shares} == {-(-batch // world)}
            joined = np.concatenate(shares).tolist()
            assert joined == slots + [-1] * (len(joined) - batch)


@settings(max_examples=100, deadline=None)
@given(CASES, st.integers(1, 70), st.lists(st.integers(1, 16), min_size=1, max_size=8))
def test_a_world_that_changes_at_every_step(case, batch, worlds):
    """What all ranks see over two epochs and more is, batch by batch,
    what one rank would have seen.
    """
    order = order_of(case)
    steps = -(-2 * order.n // batch)
    epochs = [epoch_by_hand(**case, epoch=e) for e in range(-(-steps * batch // order.n))]
    ids = []
    for step in range(steps):
        world = worlds[step % len(worlds)]
        mine = []
        for rank in range(world):
            share = order.share(step, batch, rank, world)
            mine += order.ids(share[share >= 0]).tolist()
        assert mine == [
            epochs[p // order.n][p % order.n]
            for p in slots_by_hand(order.n, order.lanes, step, batch)
        ]
        ids += mine
    whole = len(ids) // order.n
    counts = np.bincount(ids, minlength=order.n)
    assert counts.min() >= whole and counts.max() <= whole + 1


@settings(max_examples=100, deadline=None)
@given(CASES, st.lists(st.integers(0, 400), min_size=1, max_size=30))
def test_seek_equals_iteration(case, positions):
    """A fresh order asked for any positions, in any order,
    gives what one asked for all of them gave.
    """
    order = order_of(case)
    walked = order.ids(np.arange(401))
    for fresh in (order_of(case), pickle.loads(pickle.dumps(order))):
        assert fresh.ids(np.array(positions)).tolist() == walked[positions].tolist()
        assert fresh.epochs(np.array(positions)).tolist() == [p // order.n for p in positions]


def test_far_positions():
    """After a billion epochs an order is still an order."""
    case = {"shards": [5, 3, 4], "size": 2, "lanes": 2, "window": 3, "seed": 7}
    at = 10**9 * 12
    assert order_of(case).ids(np.arange(at, at + 12)).tolist() == epoch_by_hand(**case, epoch=10**9)


@settings(max_examples=100, deadline=None)
@given(CASES, st.integers(1, 40), st.integers(1, 40), st.integers(1, 12))
def test_a_batch_size_that_changes_goes_on_at_the_same_position(case, before, after, steps):
    order = order_of(case)
    offset = steps * before % after  # the new batches begin where the old ones ended
    step = steps * before // after
    first = order.slots(step, after, offset)
    assert sorted(first.tolist()) == list(range(steps * before, steps * before + after))


@pytest.mark.parametrize(
    ("samples", "lanes", "window"),
    [
        (1, 1, 1),
        (7, 1, 1),
        (64, 1, 8),
        (255, 1, 16),
        (256, 1, 32),
        (1797, 4, 128),
        (2048, 8, 256),
        (10**6, 1024, 256),
        (4 * 10**8, 1024, 256),
    ],
)
def test_defaults(samples, lanes, window):
    assert defaults(samples) == (lanes, window)
    order = Order([min(samples, 10**6)], 0)
    assert (order.lanes, order.window) == defaults(min(samples, 10**6))


@pytest.mark.parametrize(("chunks", "window"), [([1] * 40, 1), ([40], 40)])
def test_sources_have_orders_of_their_own(chunks, window):
    """Of as many samples and one seed: neither their chunks nor their windows lie alike."""
    one, two = (Order(chunks, 5, 1, window, source=s).ids(np.arange(80)).tolist() for s in (0, 1))
    assert one != two and sorted(one[:40]) == sorted(two[:40]) == list(range(40))
    assert one[:40] != one[40:] and two[:40] != two[40:]


def test_neighbours_in_a_tar_do_not_meet():
    """1,024 lanes: a batch of 1,024 of a million samples holds next to no two that lie within 8
    of each other.
    """
    order = Order(np.full(4000, 250), 3)
    near = 0
    for step in (0, 1, 500, 976):
        ids = np.sort(order.ids(order.slots(step, 1024)))
        near += int((np.diff(ids) <= 8).sum())
    assert near <= 0.01 * 4 * 1024


def test_numbers_of_a_sample():
    """draw(view, n) belongs to seed, epoch, sample and view;
    more numbers change none of those before.
    """
    draw = uniforms(11, 0, 5, 2)
    known = [(w >> 11) * 2.0**-53 for w in words(11, 3, 1, 5, 2, 9)]
    assert draw(1, 9).tolist() == known and draw(1, 4).tolist() == known[:4]
    others = [
        uniforms(*other)(view, 1)[0]
        for other, view in (
            ((11, 0, 5, 2), 0),
            ((12, 0, 5, 2), 1),
            ((11, 1, 5, 2), 1),
            ((11, 0, 6, 2), 1),
            ((11, 0, 5, 3), 1),
        )
    ]
    assert len({known[0], *others}) == 6
