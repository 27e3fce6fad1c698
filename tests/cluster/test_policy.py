"""Which ranks run where, and how a round ends: pure decisions."""

import json
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtx_scale.cluster.policy import DAY, admit, admitted, layout, score, slow
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.launch import override, recipes, rounds
from vtx_scale.launch.cli import main
from vtx_scale.launch.rounds import DECIDED, HUNG, SENDING, Tries, Watch, patiently

slots = st.lists(st.integers(0, 16), max_size=12)
axes = st.sampled_from([1, 2, 4, 8])


@given(st.integers(0, 200), st.integers(1, 64), st.integers(0, 64), axes)
def test_the_admitted_world_is_the_largest_that_fits(room, low, more, unit):
    high = low + more
    world = admit(room, low, high, unit)
    fits = [w for w in range(low, high + 1) if w <= room and w % unit == 0]
    assert world == (fits[-1] if fits else 0)
    assert world in (0, *admitted(low, high, unit))


@given(slots, axes, st.data())
def test_every_rank_has_a_slot_and_groups_stay_on_a_machine_where_they_can(slots, axis, data):
    world = data.draw(st.integers(0, sum(slots) // axis)) * axis
    ranks = layout(world, slots, axis)
    assert sum(ranks) == world and all(0 <= r <= s for r, s in zip(ranks, slots, strict=True))
    if sum(s // axis for s in slots) * axis >= world:
        assert all(r % axis == 0 for r in ranks), "a group lies on two machines"
    if axis == 1:  # the first are filled before the next have any
        filled = [r == s for r, s in zip(ranks, slots, strict=True)]
        last = max((i for i, r in enumerate(ranks) if r), default=-1)
        assert all(filled[: max(last, 0)])


@given(st.lists(st.floats(0, 1e6), max_size=8), st.floats(1e6, 2e6))
def test_a_fault_counts_half_after_a_day(times, now):
    assert score([], now) == 0
    assert score(times, now) <= len(times)
    assert math.isclose(score(times, now + DAY), score(times, now) / 2)
    assert math.isclose(score([*times, now], now), score(times, now) + 1)


@given(st.integers(3, 40), st.data())
def test_one_slow_machine_of_a_ring_is_known_and_a_slow_pair_is_nobodys(machines, data):
    rates = data.draw(st.lists(st.floats(50, 150), min_size=machines, max_size=machines))
    assert slow(rates) == []
    bad = data.draw(st.integers(0, machines - 1))
    rates[bad] = 1.0
    assert slow(rates) == []
    if machines > 3:  # else most pairs are slow
        rates[bad - 1] = 0.0
        assert slow(rates) == [bad]


codes = st.dictionaries(
    st.integers(0, 7), st.sampled_from([None, 0, 1, -9, -11, HUNG, *DECIDED]), min_size=1
)


@given(codes)
def test_a_rank_that_ended_by_decision_is_believed(codes):
    watch = Watch()
    over = watch.over(codes)
    rank, code = watch.verdict(codes)
    assert over or None in codes.values()
    decided = {r: c for r, c in codes.items() if c in DECIDED}
    if decided:
        assert decided[rank] == code
    elif any(codes.values()):
        assert codes[rank] == code != 0
    else:
        assert code == 0


def test_a_lost_rank_is_named_before_those_that_it_took_along():
    for codes in ({0: 1, 1: -9}, {0: 1, 1: -9, 2: 1}):
        watch = Watch()
        assert watch.over(codes)
        assert watch.verdict(codes) == (1, codes[1])
    watch = Watch()
    assert not watch.over({0: None, 1: 1})
    assert watch.over({0: -9, 1: 1})
    assert watch.verdict({0: -9, 1: 1}) == (0, -9), "the end of a peer was seen first"


@given(st.sampled_from([1, -9, HUNG, *DECIDED]), st.booleans())
def test_ranks_that_decided_have_time_to_send_their_last_lines(code, bucket):
    watch, began = Watch(bucket), time.monotonic()
    assert not watch.over({0: code, 1: None})
    left = watch.deadline - began
    if bucket and code in DECIDED:
        assert left >= SENDING >= 25
    else:
        assert left < 11


def test_a_run_that_gets_nowhere_is_given_up():
    tries = Tries(last=0)
    assert [tries.failed(0) for _ in range(4)] == [False, False, False, True]
    tries = Tries(last=0)
    assert not any(tries.failed(step) for step in (10, 10, 10, 20, 20, 20, 10, 10, 10))
    assert tries.failed(10)


def test_a_machine_that_is_lost_again_counts_where_nothing_was_saved():
    tries = Tries(last=0)
    assert not tries.lost_again({"a"}, 10) and not tries.lost_again(set(), 10)
    assert not tries.lost_again({"b"}, 10), "another one"
    assert tries.lost_again({"a", "c"}, 10)
    assert not tries.lost_again({"a"}, 20), "something was saved since"
    assert tries.lost_again({"a"}, 20)


def test_a_storage_that_does_not_answer_is_waited_for(monkeypatch, capsys):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    answers = iter([OSError("away"), OSError("away"), 7])

    def ask(about):
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer + about

    assert patiently("s3://b/run", ask, 1) == 8
    assert capsys.readouterr().err.count("s3://b/run does not answer (away): waiting") == 1
    monkeypatch.setattr(rounds.requests, "asked", True)
    assert patiently("s3://b/run", ask, 1) is None
    with pytest.raises(ValueError):
        monkeypatch.setattr(rounds.requests, "asked", False)
        patiently("s3://b/run", int, "no number")


@pytest.mark.parametrize(
    "keys, words",
    [
        (("system.world=4..2",), "give the smaller number first"),
        (("system.world=many",), "give a number, or the least and the most, as in 4..16"),
        (("system.world=0..4",), "give a number, or the least and the most"),
        (("system.world=5..5", "system.tp=2"), "none of these is a multiple of 2"),
        (("system.world=2..4", "system.strategy=tp"), "runs on one world alone"),
        (("system.world=0",), "system.world=0: give 1 or more"),
    ],
)
def test_a_range_of_worlds_that_cannot_be_is_refused(keys, words):
    with pytest.raises(UserError, match=words):
        override.override(recipes.find("clip_vit_b32", smoke=True), list(keys))


def test_a_range_of_worlds_is_kept_and_shown(capsys):
    keys = ["system.world=3..9", "system.tp=2", "system.strategy=fsdp"]
    run = override.override(recipes.find("clip_vit_b32", smoke=True), keys)
    assert run.system.worlds == (3, 9) and run.system.least == 4
    assert override.from_dict(override.to_dict(run)) == run
    fixed = override.override(run, ["system.world=8"])
    assert fixed.system.worlds == (8, 8) and fixed.system.least == 8
    assert override.recipe_hash(run) == override.recipe_hash(fixed)
    assert main(["show", "clip_vit_b32", "--smoke", *keys]) == 0
    assert "admitted worlds: 4, 6, 8" in capsys.readouterr().out
    assert main(["show", "clip_vit_b32", "--smoke", *keys, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["worlds"] == [4, 6, 8]
