"""P1, the same samples: the order of a mix of sources against a golden vector and against a second
implementation in plain Python.
"""

import hashlib
import pickle
from fractions import Fraction
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.promises.test_p1_order import MASK, cut, epoch_by_hand, mirrored, words
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.mix import Mix, block
from vtx_scale.data_pipeline.order import Order
from vtx_scale.data_pipeline.weights import TOTAL, shares

WEIGHTS = st.lists(st.floats(0.001, 1.0), min_size=1, max_size=8)
SEEDS = st.integers(0, MASK)


def shares_by_hand(weights):
    total = sum(Fraction(repr(w)) for w in weights)
    exact = [Fraction(repr(w)) * 65536 / total for w in weights]
    floors = [e.numerator // e.denominator for e in exact]
    left = 65536 - sum(floors)
    rest = sorted(enumerate(exact), key=lambda row: (floors[row[0]] - row[1], row[0]))
    return [floors[i] + (i in {j for j, _ in rest[:left]}) for i in range(len(weights))]


@lru_cache(64)
def block_by_hand(seed, segment, number, counts):
    """The source of each position, step by step as docs/data.md tells it."""
    drawn, rows = iter(words(seed, 4, number, segment, 0, 65536)), []
    for source, count in enumerate(counts):
        for k in range(count):
            u = next(drawn) >> 32
            rows.append(((((k << 32) + u) << 15) // count, len(rows), source))
    return [source for _, _, source in sorted(rows)]


def walk_by_hand(case, positions):
    """(source, epoch, sample of that source) of the first positions, one after the other."""
    counts, epochs, out = [0] * len(case["sources"]), {}, []
    for p in range(positions):
        z = max(i for i, (start, _) in enumerate(case["segments"]) if start <= p)
        start, weights = case["segments"][z]
        number, at = divmod(p - start, 65536)
        i = block_by_hand(case["seed"], z, number, tuple(weights))[at]
        shards = case["sources"][i]
        epoch, own = divmod(counts[i], sum(shards))
        counts[i] += 1
        if (i, epoch) not in epochs:
            lanes, window = case["lanes"], case["window"]
            epochs[i, epoch] = epoch_by_hand(
                shards, case["size"], lanes, window, case["seed"], epoch, i
            )
        out.append((i, epoch, epochs[i, epoch][own], own % case["lanes"]))
    return out


def mix_of(case):
    chunks = [np.array(cut(shards, case["size"])) for shards in case["sources"]]
    return Mix(chunks, case["seed"], case["segments"], case["lanes"], case["window"])


@st.composite
def cases(draw, changes=3):
    sources = draw(
        st.lists(st.lists(st.integers(1, 14), min_size=1, max_size=4), min_size=1, max_size=8)
    )
    starts = {0, *draw(st.lists(st.integers(1, 300), max_size=changes))}
    weights = st.lists(st.floats(0.01, 1), min_size=len(sources), max_size=len(sources))
    return {
        "sources": sources,
        "segments": [(start, shares(draw(weights))) for start in sorted(starts)],
        "size": draw(st.integers(1, 8)),
        "lanes": draw(st.integers(1, 12)),
        "window": draw(st.integers(1, 9)),
        "seed": draw(SEEDS),
    }


def test_golden_block():
    weights = shares([0.7, 0.3])
    assert weights == (45875, 19661)
    made = block(1, 0, 0, weights)
    assert made[:20].tolist() == [0, 1, 0, 0, 0, 1, 0, 0, 1, 0, 1, 0, 0, 0, 0, 1, 0, 1, 0, 0]
    assert hashlib.sha256(made.tobytes()).hexdigest() == (
        "44d01cb149a827f9608136ce9a2dabc798c182a174837bb5b85bdf045095674b"
    )
    for where in ((1, 0, 0), (MASK, 2, 1), (2**63 + 5, 1, 2)):
        assert block_by_hand(*where, weights) == block(*where, weights).tolist()


@settings(max_examples=200, deadline=None)
@given(WEIGHTS)
def test_shares_are_largest_remainders(weights):
    found = shares(weights)
    assert list(found) == shares_by_hand(weights) and sum(found) == TOTAL
    exact = [Fraction(str(w)) / sum(map(Fraction, map(str, weights))) * TOTAL for w in weights]
    assert all(abs(a - b) < 1 for a, b in zip(found, exact, strict=True))


def test_ties_go_to_the_first_and_a_weight_of_nothing_is_refused():
    assert shares([1, 1, 1]) == (21846, 21845, 21845)
    assert shares([0.1] * 3) == shares([7] * 3)
    assert shares([1]) == (65536,)
    with pytest.raises(UserError, match=r"1e-05 of b is less than 1 of 65,536"):
        shares([2.0, 1e-5], ["a", "b"])


@settings(max_examples=6, deadline=None)
@given(WEIGHTS, SEEDS, st.integers(0, MASK), st.integers(0, 2**40))
def test_two_implementations_agree_on_a_block(weights, seed, segment, number):
    counts = shares(weights)
    assert block(seed, segment, number, counts).tolist() == block_by_hand(
        seed, segment, number, counts
    )
    block_by_hand.cache_clear()


@settings(max_examples=8, deadline=None)
@given(cases(changes=1))
def test_two_implementations_agree_on_samples(case):
    walked = walk_by_hand(case, 400)
    mix, at = mix_of(case), np.arange(400)
    assert mix.located(at)[0].tolist() == [i for i, _, _, _ in walked]
    assert mix.epochs(at).tolist() == [e for _, e, _, _ in walked]
    assert mix.ids(at).tolist() == [int(mix.firsts[i]) + g for i, _, g, _ in walked]
    for step in (0, 3):
        slots = sorted(
            range(step * 37, step * 37 + 37),
            key=lambda p: (mirrored(walked[p][3], case["lanes"]), walked[p][0], p),
        )
        assert mix.slots(step, 37).tolist() == slots
    block_by_hand.cache_clear()


@settings(max_examples=30, deadline=None)
@given(st.data(), st.integers(1, 8), SEEDS)
def test_a_source_has_its_share_everywhere(data, sources, seed):
    """I13: never farther from its share than the number of sources + 1, exact at whole blocks,
    never falling; a change leaves what lies before alone.
    """
    weights = st.lists(st.floats(0.001, 1), min_size=sources, max_size=sources).map(shares)
    first, then = data.draw(weights), data.draw(weights)
    change = data.draw(st.integers(1, 2 * TOTAL))
    chunks = [np.array([5])] * sources
    plain = Mix(chunks, seed, [(0, first)])
    source, own = plain.located(np.arange(TOTAL + 20_000))
    for i in range(sources):
        mine = source == i
        n = np.cumsum(mine)  # n_i of positions 1, 2, ...
        exact = np.arange(1, len(source) + 1) * first[i] / TOTAL
        assert np.abs(n - exact).max() <= sources + 1
        assert n[TOTAL - 1] == first[i]
        assert (own[mine] == np.arange(mine.sum())).all(), "a source repeats or leaves out"
    for p in (0, 1, 777, TOTAL, TOTAL + 20_000):
        assert plain.counts(p).tolist() == np.bincount(source[:p], minlength=sources).tolist()

    changed = Mix(chunks, seed, [(0, first), (change, then)])
    near = np.arange(max(0, change - 500), change + 500)
    was, now = plain.located(near), changed.located(near)
    before = near < change
    assert all((a[before] == b[before]).all() for a, b in zip(was, now, strict=True))
    base = plain.counts(change)
    for i in range(sources):
        mine = (now[0] == i) & ~before
        assert now[1][mine].tolist() == list(range(int(base[i]), int(base[i]) + mine.sum()))
        drift = changed.counts(change + 450)[i] - base[i] - 450 * then[i] / TOTAL
        assert abs(drift) <= sources + 1


@settings(max_examples=15, deadline=None)
@given(cases(), st.integers(1, 70))
def test_a_global_batch_is_the_same_for_every_world(case, batch):
    mix = mix_of(case)
    for step in (0, 2, 300 // batch):
        slots = mix.slots(step, batch).tolist()
        assert sorted(slots) == list(range(step * batch, (step + 1) * batch))
        for world in range(1, 17):
            fresh = pickle.loads(pickle.dumps(mix))
            shares = [fresh.share(step, batch, rank, world) for rank in range(world)]
            assert {len(s) for s in shares} == {-(-batch // world)}
            joined = np.concatenate(shares).tolist()
            assert joined == slots + [-1] * (len(joined) - batch)


@settings(max_examples=20, deadline=None)
@given(cases(), st.lists(st.integers(0, 700), min_size=1, max_size=40))
def test_seek_equals_iteration(case, positions):
    """Also across changes of the weights, in any order, from a pickle."""
    mix = mix_of(case)
    walked, epochs = mix.ids(np.arange(701)), mix.epochs(np.arange(701))
    fresh = pickle.loads(pickle.dumps(mix))
    assert fresh.ids(np.array(positions)).tolist() == walked[positions].tolist()
    assert fresh.epochs(np.array(positions)).tolist() == epochs[positions].tolist()
    assert fresh.segments == mix.segments


@pytest.mark.parametrize("sources", [255, 256, 257, 300])
def test_many_sources_are_told_apart(sources):
    """Each has its share and reads its own order; of up to 256 a block is the bytes it was."""
    weights = shares([1 + i % 3 for i in range(sources)])
    made = block(5, 0, 0, weights)
    assert np.bincount(made, minlength=sources).tolist() == list(weights)
    assert made.dtype == (np.uint8 if sources <= 256 else np.uint16)
    mix = Mix([np.array([3])] * sources, 5, [(0, weights)])
    source, own = mix.located(np.arange(TOTAL))
    assert mix.counts(TOTAL).tolist() == np.bincount(source, minlength=sources).tolist()
    for i in (0, 255 % sources, sources - 1):
        assert own[source == i].tolist() == list(range(weights[i]))


def test_two_implementations_agree_on_300_sources():
    weights = shares([1 + i % 7 for i in range(300)])
    assert block(9, 1, 2, weights).tolist() == block_by_hand(9, 1, 2, weights)
    block_by_hand.cache_clear()


def test_far_positions():
    """After ten million blocks a source is where its share says, and reads its own order."""
    mix = Mix([np.array([7, 5]), np.array([9])], 3, [(0, shares([2, 1]))], 2, 3)
    at = 10**7 * TOTAL
    source, own = mix.located(np.arange(at, at + 40))
    for i, order in enumerate(mix.orders):
        base = 10**7 * mix.segments[0][1][i]
        mine = source == i
        assert own[mine].tolist() == list(range(base, base + mine.sum()))
        assert (
            mix.ids(np.arange(at, at + 40))[mine].tolist()
            == (mix.firsts[i] + order.ids(own[mine])).tolist()
        )


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=6),
    SEEDS,
    st.integers(1, 60),
    st.one_of(st.none(), st.integers(1, 20)),
)
def test_a_mix_of_one_is_that_source(sizes, seed, batch, lanes):
    """Bit for bit, also where its one weight was set anew."""
    order = Order(np.array(sizes), seed, lanes)
    mix = Mix([np.array(sizes)], seed, [(0, (TOTAL,)), (31, (TOTAL,))], lanes)
    at = np.arange(200)
    assert mix.ids(at).tolist() == order.ids(at).tolist()
    assert mix.epochs(at).tolist() == order.epochs(at).tolist()
    for step, rank, world in ((0, 0, 1), (3, 1, 2), (5, 2, 3)):
        both = (x.share(step, batch, rank, world, 11).tolist() for x in (mix, order))
        assert next(both) == next(both)
    assert mix.fingerprint([b"d"]) == order.fingerprint([b"d"])
    assert (mix.lanes, mix.window) == (order.lanes, order.window)


def test_sources_count_in_the_fingerprint_and_weights_do_not():
    chunks = [np.array([9]), np.array([9])]
    one, two = (Mix(chunks, 5, [(0, shares(w))], 2, 2) for w in ([1, 1], [3, 1]))
    assert one.fingerprint([b"a", b"b"]) == two.fingerprint([b"a", b"b"])
    named = {
        one.fingerprint(digests) for digests in ([b"a", b"b"], [b"b", b"a"], [b"ab"], [b"a", b"c"])
    }
    assert len(named) == 4


@pytest.mark.parametrize(
    "segments",
    [
        [],
        [(5, (TOTAL - 1, 1))],
        [(0, (TOTAL - 1, 1)), (0, (1, TOTAL - 1))],
        [(0, (TOTAL,))],
        [(0, (TOTAL, 0))],
        [(0, (7, 8))],
    ],
)
def test_segments_that_are_none(segments):
    with pytest.raises(ValueError, match="segment"):
        Mix([np.array([4]), np.array([4])], 0, segments)


def test_neighbouring_slots_keep_to_their_chunks():
    """Eight ranks of a mix read next to no chunk twice: slots go by lane, whatever the source."""
    chunks = [np.full(n, 64) for n in (1500, 800, 800)]
    mix = Mix(chunks, 9, [(0, shares([5, 3, 2]))], 256, 128)
    of_chunk = np.arange(3100 * 64) // 64
    read = [set() for _ in range(8)]
    for step in range(100):
        for rank in range(8):
            read[rank] |= set(of_chunk[mix.ids(mix.share(step, 200, rank, 8))].tolist())
    assert sum(map(len, read)) <= 1.10 * len(set().union(*read))
