"""P1 of a mix through the real loader: ids and pixels whatever its processes, faults and
interruptions.
"""

import json

import numpy as np
import pytest

from tests.data_pipeline.make import Pixels, batches_of, corrupt, rows, small_index, small_set
from tests.promises.test_p1_data import loaded
from vtx_scale.data_pipeline.batches import Batches, InOrder
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.loader import Loader
from vtx_scale.data_pipeline.mix import Mix
from vtx_scale.data_pipeline.tools.shards import write_shard
from vtx_scale.data_pipeline.weights import TOTAL, shares

BATCH, STEPS = 8, 6
SEGMENTS = [(0, shares([0.7, 0.2, 0.1])), (21, shares([1, 2, 3]))]  # in the middle of a batch


def mix_batches(indexes, batch=BATCH, rank=0, world=1, segments=SEGMENTS, seed=3, reader=None):
    chunks = [index.chunk_samples for index in indexes]
    names = ("a", "b", "c")[: len(indexes)]
    return Batches(
        indexes[0],
        Mix(chunks, seed, segments, 3, 2),
        reader or Pixels(),
        batch,
        rank,
        world,
        seed,
        more=tuple(indexes[1:]),
        names=names,
    )


@pytest.fixture(scope="module")
def indexes(tmp_path_factory):
    sets = ((5, 1, 9), (4,), (3, 3))
    return [small_index(small_set(tmp_path_factory.mktemp("set"), sizes)) for sizes in sets]


def seen(indexes, world=1, workers=0, start=0, batch=BATCH, steps=STEPS, segments=SEGMENTS):
    """{(step, slot): (sample, epoch, pixels)} of all ranks."""
    out = {}
    for rank in range(world):
        batches = mix_batches(indexes, batch, rank, world, segments)
        loader = Loader(batches, start=start, stop=steps, workers=workers)
        try:
            for step, local in enumerate(loader, start):
                assert local.valid.sum() == (local.ids >= 0).sum()
                for i in np.flatnonzero(local.valid.numpy()).tolist():
                    pixels = local["image"][i].numpy().tobytes()
                    at = (step, int(local.slot[i]))
                    out[at] = (int(local.ids[i]), int(local.epoch[i]), pixels)
        finally:
            loader.close()
    return out


@pytest.fixture(scope="module")
def alone(indexes):
    return seen(indexes)


def test_ids_and_pixels_are_those_of_one_process_for_every_world(indexes, alone):
    assert len(alone) == BATCH * STEPS
    order = mix_batches(indexes).order
    slots = [order.slots(step, BATCH) for step in range(STEPS)]
    assert [g for g, _, _ in alone.values()] == order.ids(np.concatenate(slots)).tolist()
    assert {int(np.searchsorted(order.firsts, g, "right")) for g, _, _ in alone.values()} == {
        1,
        2,
        3,
    }
    for world in range(2, 17):
        assert seen(indexes, world) == alone, f"world {world}"


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more processes than cores
@pytest.mark.parametrize("workers", [pytest.param(n, marks=pytest.mark.slow) for n in (1, 2)] + [3])
def test_ids_and_pixels_are_those_of_one_process_for_all_workers(indexes, alone, workers):
    assert seen(indexes, 1, workers) == alone
    if workers < 3:
        assert seen(indexes, 2, workers) == alone


def test_pixels_of_a_source_are_its_own(indexes):
    """The same shards twice: each source draws crops of its own, in an order of its own."""
    twice = seen([indexes[0], indexes[0]], segments=[(0, shares([1, 1]))])
    first = {(g, e): x for g, e, x in twice.values() if g < 15}
    second = {(g - 15, e): x for g, e, x in twice.values() if g >= 15}
    both = first.keys() & second.keys()
    assert len(both) > 8 and all(first[k] != second[k] for k in both)
    orders = [[g % 15 for g, _, _ in twice.values() if g // 15 == s] for s in (0, 1)]
    assert orders[0] != orders[1][: len(orders[0])]


def test_a_mix_of_one_is_that_source_to_the_pixel(indexes):
    alone, _ = loaded(indexes[0], batch=BATCH, steps=STEPS)
    assert seen(indexes[:1], segments=[(0, (TOTAL,))]) == alone
    mix, plain = (
        mix_batches(indexes[:1], segments=[(0, (TOTAL,))]),
        batches_of(indexes[0], Pixels(), BATCH),
    )
    assert mix.fingerprint == plain.fingerprint
    state = Loader(plain, start=3).state_dict()
    assert Loader(mix, start=3).state_dict() == state


def test_the_state_names_the_next_batch_at_every_step(indexes, alone):
    flat = [alone[s, i][0] for s in range(STEPS) for i in range(BATCH)]
    loader = Loader(mix_batches(indexes))
    for done in range(1, STEPS):
        loader.next()
        state = json.loads(json.dumps(loader.state_dict()))
        assert state["segments"] == [[start, list(w)] for start, w in SEGMENTS]
        assert state["position"] == done * BATCH and len(json.dumps(state)) < 1024
        other = Loader(mix_batches(indexes))
        other.load_state_dict(state)
        assert other.next().ids.tolist() == flat[done * BATCH : (done + 1) * BATCH]


def test_a_resume_at_the_end_of_a_block_is_the_run_that_walked_over_it(indexes):
    """Also where the batch itself lies in two blocks."""
    segments = [(0, SEGMENTS[0][1]), (TOTAL + 21, SEGMENTS[1][1])]
    first = TOTAL // BATCH - 2
    for offset in (0, 3):
        walking = Loader(mix_batches(indexes, segments=segments))
        walking.load_state_dict({**walking.state_dict(), "position": first * BATCH + offset})
        for _ in range(6):
            state = walking.state_dict()
            here = walking.next()
            fresh = Loader(mix_batches(indexes, segments=segments))
            fresh.load_state_dict(state)
            again = fresh.next()
            assert again.ids.tolist() == here.ids.tolist()
            assert (again["image"] == here["image"]).all()
        assert state["position"] == (first + 5) * BATCH + offset > TOTAL + 21


def test_weights_may_change_behind_a_state_and_not_before_it(indexes):
    other = [SEGMENTS[0], (21, shares([3, 2, 1]))]
    state = Loader(mix_batches(indexes), start=3).state_dict()
    behind = Loader(mix_batches(indexes, segments=other))
    with pytest.raises(UserError, match=r"segments .*\(21, .* before position 24 .* give the weig"):
        behind.load_state_dict(state)
    with pytest.raises(UserError, match="segments"):
        Loader(mix_batches(indexes, segments=[(0, SEGMENTS[1][1])])).load_state_dict(state)
    early = Loader(mix_batches(indexes), start=2).state_dict()
    behind.load_state_dict(early)
    assert behind.next().ids.tolist() != Loader(mix_batches(indexes), start=2).next().ids.tolist()


def test_a_bad_sample_is_named_by_its_source(indexes, alone, tmp_path):
    members = dict(rows(0, 4))
    members["0-02"]["jpg"] = corrupt(members["0-02"]["jpg"])
    write_shard(tmp_path / "s0.tar", members.items())
    faulty = [indexes[0], small_index(tmp_path), indexes[2]]
    bad, valid = [], {}
    for step, batch in enumerate(Loader(mix_batches(faulty), stop=STEPS)):
        bad += batch.bad
        for i in np.flatnonzero(batch.valid.numpy()).tolist():
            pixels = batch["image"][i].numpy().tobytes()
            valid[step, i] = (int(batch.ids[i]), int(batch.epoch[i]), pixels)
    assert valid.items() <= alone.items() and len(valid) + len(bad) == len(alone)
    assert {(e["source"], e["shard"], e["key"], e["sample"]) for e in bad} == {
        (1, "b:s0.tar", "0-02", 2)
    }
    order = mix_batches(faulty).order
    for e in bad:
        source, own = (x.item() for x in order.located(np.array([e["position"]])))
        assert (source, own // 4) == (1, e["epoch"])


def test_an_evaluation_goes_through_all_sources_in_turn(indexes):
    n = sum(index.n for index in indexes)
    ids = []
    for rank in range(2):
        batches = Batches(
            indexes[0],
            InOrder(n),
            Pixels(),
            6,
            rank,
            2,
            more=tuple(indexes[1:]),
            names=("a", "b", "c"),
        )
        for batch in Loader(batches, stop=-(-n // 6)):
            ids += batch.ids[batch.valid].tolist()
    reader = batches.chunk_reader()
    assert sorted(ids) == list(range(n))
    assert [reader.id(g) for g in (0, 14, 15, 18, 19, n - 1)] == [
        "a:s0.tar/0-00",
        "a:s2.tar/2-08",
        "b:s0.tar/0-00",
        "b:s0.tar/0-03",
        "c:s0.tar/0-00",
        "c:s1.tar/1-02",
    ]
