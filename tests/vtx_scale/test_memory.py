"""Snapshots in memory: who keeps what, what survives, and that a run goes on from them."""

import os
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.machines import Machines
from tests.promises import test_p4_guard
from tests.promises.test_p4_drift import NAMES, perturbed
from tests.promises.test_p4_guard import FIVE, KEYS, scaled, train_scaled
from tests.ranks import on_ranks
from tests.runs import assert_same_bits, log_of, losses, smoke, train
from tests.survivors import assert_none_survives
from vtx_scale.checkpoints.format import steps
from vtx_scale.checkpoints.placement import (
    Report,
    Share,
    Transfer,
    fetches,
    keepers,
    newest,
    placement,
    waves,
)
from vtx_scale.data_pipeline.storage import Folder
from vtx_scale.launch import memory, override, recipes
from vtx_scale.launch.prepare import prepare_folder, refuse
from vtx_scale.trainer.cadence import MemoryCadence

STEPS = 19
OF = {"hsdp": ("system.replicas=2",), "tp": ("system.strategy=fsdp", "system.tp=2")}


@st.composite
def worlds(draw):
    """(machine of each rank, shares of each rank): copies over groups of ranks as strategies make
    them, by neighbours (tp) and by stride (ddp, hsdp), and shards that nobody else has.
    """
    world = draw(st.integers(1, 64))
    each = draw(st.integers(1, world))
    nodes = [r // each for r in range(world)]
    if draw(st.booleans()):  # ranks of a machine need not be neighbours
        nodes = draw(st.permutations(nodes))
    ways = draw(st.sampled_from([n for n in range(1, world + 1) if world % n == 0]))
    kinds = draw(st.lists(st.sampled_from(["stride", "neighbours", "own"]), min_size=1, max_size=3))
    shares = [[] for _ in range(world)]
    for k, kind in enumerate(kinds):
        for r in range(world):
            share = {
                "stride": Share(world // ways, r // ways, f"{k}:{r % ways}"),
                "neighbours": Share(ways, r % ways, f"{k}:{r // ways}"),
                "own": Share(1, 0, f"{k}:{r}"),
            }[kind]
            shares[r].append(share)
    return nodes, shares


@settings(max_examples=300, deadline=None)
@given(worlds())
def test_with_any_machine_gone_every_part_is_there(drawn):
    nodes, shares = drawn
    parts = placement(nodes, shares)
    holds = keepers(parts, nodes)
    assert [p.number for p in parts] == list(range(sum(map(len, shares))))
    for gone in set(nodes) if len(set(nodes)) > 1 else {-1}:  # one alone: its ranks may die
        assert all(machines - {gone} for machines in holds.values())


@settings(max_examples=300, deadline=None)
@given(worlds())
def test_nothing_is_sent_that_ranks_of_another_machine_hold(drawn):
    nodes, shares = drawn
    for part in placement(nodes, shares):
        mine = shares[part.rank][part.share]
        elsewhere = {
            r
            for r, those in enumerate(shares)
            for s in those
            if (s.copies, s.digest) == (mine.copies, mine.digest) and nodes[r] != nodes[part.rank]
        }
        if elsewhere:
            assert not part.sent and part.second in elsewhere
            assert shares[part.second][part.twin].digest == mine.digest
        else:
            assert part.sent == (len(set(nodes)) > 1)


@settings(max_examples=200, deadline=None)
@given(worlds())
def test_no_machine_keeps_much_more_than_another(drawn):
    nodes, shares = drawn
    parts = [p for p in placement(nodes, shares) if p.sent]
    received = [sum(p.second == r for p in parts) for r in range(len(nodes))]
    sizes = [nodes.count(n) for n in set(nodes)]
    most = max(map(len, shares)) * -(-max(sizes) // min(sizes))
    assert max(received, default=0) <= most


@given(
    st.lists(
        st.builds(Transfer, st.just("x"), st.integers(0, 9), st.integers(0, 9)).filter(
            lambda t: t.source != t.target
        )
    )
)
def test_a_rank_sends_one_file_and_receives_one_at_a_time(transfers):
    found = waves(transfers)
    assert sorted(map(repr, transfers)) == sorted(repr(t) for wave in found for t in wave)
    for wave in found:
        assert len({t.source for t in wave}) == len({t.target for t in wave}) == len(wave)


def test_the_newest_of_which_all_is_somewhere():
    whole = [Report(0, 10, 1, "a", 4, (0, 1)), Report(2, 10, 1, "", 0, (2, 3))]
    torn = [Report(0, 15, 1, "b", 4, (0, 1)), Report(2, 15, 1, "b", 4, (1, 2))]
    late = [Report(2, 15, 2, "", 0, (3,))]  # under another epoch
    assert newest(whole + torn + late, -1) == whole[0]
    assert newest(whole + torn, 10) is None, "the disk is as new"
    assert newest(torn, -1) is None
    assert newest([Report(0, 10, 1, "", 4, (0, 1, 2, 3))], -1) is None, "no manifest of this run"


def test_what_a_machine_lacks_comes_from_those_that_have_it_by_turns():
    order = ["a", "b", "c"]
    has = {0: {"a", "b"}, 4: {"a", "b"}, 8: set()}
    found = fetches({0: ["a"], 4: ["c"], 8: ["a", "b", "c"]}, has, order)
    assert found == [Transfer("a", 0, 8), Transfer("b", 4, 8)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    known = {}

    def of(strategy, machines, ranks):
        key = strategy, machines * ranks
        if key not in known:
            folder = tmp_path_factory.mktemp("undisturbed") / "run"
            run = smoke(f"system.strategy={strategy}", f"steps={STEPS}", *OF.get(strategy, ()))
            assert set(Machines(run, folder, 1, machines * ranks).round()) == {0}, log_of(folder)
            known[key] = folder
        return known[key]

    return of


def with_memory(folder, strategy, machines, ranks, *keys):
    of = OF.get(strategy, ())
    all_keys = (f"system.strategy={strategy}", f"steps={STEPS}", "checkpoint.every=1000", *of)
    return Machines(smoke(*all_keys, "checkpoint.memory=5", *keys), folder, machines, ranks)


def resumed(folder):
    """The steps that starts went on from, one after the other."""
    lines = [x for x in log_of(folder).splitlines() if "resumed at step" in x]
    return [int(x.split("resumed at step ")[1].split()[0]) for x in lines]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_ranks_and_machines_are_lost_and_five_steps_at_most_are_done_again(
    undisturbed, tmp_path, strategy
):
    """One rank, one machine with its memory, and all ranks; the other machine with its memory."""
    folder = tmp_path / "run"
    run = with_memory(folder, strategy, 2, 1)
    assert -9 in run.round("backward-8:1")
    run.lose(1)
    assert -9 in run.round("step-12:0")
    run.lose(0)
    assert -9 in run.round("step-18:0", "step-18:1")
    assert run.round() == [0, 0], log_of(folder)
    assert resumed(folder) == [5, 10, 15]
    as_undisturbed(folder, undisturbed(strategy, 2, 1))


def as_undisturbed(folder, reference):
    assert losses(folder) == losses(reference)
    assert_same_bits(folder, reference)


@pytest.mark.slow
def test_a_kill_while_a_snapshot_is_written_costs_no_more(undisturbed, tmp_path):
    """The snapshot of a step is there before the next step is finished; until then the one before
    it is, also where a rank is killed while it is written.
    """
    folder = tmp_path / "run"
    run = with_memory(folder, "fsdp", 2, 1)
    assert -9 in run.round("step-6:1", delay=2.0)
    assert -9 in run.round("memory-data-10:1")
    assert -9 in run.round("memory-manifest-10:0")  # all parts are there, and one manifest or none
    assert run.round() == [0, 0], log_of(folder)
    assert resumed(folder) in ([5, 5, 5], [5, 5, 10])
    as_undisturbed(folder, undisturbed("fsdp", 2, 1))


@pytest.mark.slow
def test_a_checkpoint_at_the_same_step_and_a_request_to_leave(undisturbed, tmp_path):
    """The disk is as new then: it is taken, whatever is in memory."""
    folder = tmp_path / "run"
    run = with_memory(folder, "fsdp", 2, 1, "checkpoint.every=5", "system.leave_after=10")
    assert run.round() == [75, 75], log_of(folder)
    assert run.round() == [0, 0], log_of(folder)
    assert resumed(folder) == [10]
    assert "from memory" not in log_of(folder)
    as_undisturbed(folder, undisturbed("fsdp", 2, 1))


def perturbed_beside_memory(memory, *arguments):
    os.environ["VTX_MEMORY"] = str(memory)
    return perturbed(*arguments)


@pytest.mark.slow
def test_copies_that_differ_become_no_snapshot(tmp_path):
    """A bit turns behind step 5: the snapshot of step 6 is not made, and that of step 3 stays."""
    folder, kept = tmp_path / "run", tmp_path / "memory"
    kept.mkdir()
    run = smoke("system.strategy=ddp", "steps=12", "checkpoint.memory=3", recipe="dino_vit_s16")
    prepare_folder(run, folder, refuse(run, folder, 2))
    arguments = (override.to_dict(run), folder, recipes.STRANGERS, NAMES["student"])
    assert on_ranks(2, perturbed_beside_memory, kept, *arguments) == [1, 1]
    assert "step 6 is not saved" in log_of(folder)
    assert steps(Folder(kept)) == [3]


def scaled_beside_memory(memory, *arguments):
    os.environ["VTX_MEMORY"] = str(memory)
    return scaled(*arguments)


@pytest.mark.slow
def test_a_roll_back_takes_no_snapshot_from_beyond(tmp_path, monkeypatch):
    """The guard goes back from step 15 to step 8: what memory has from between is not taken."""
    plain, kept = tmp_path / "plain", tmp_path / "memory"
    kept.mkdir()
    about = {"world": 2, "strategy": "ddp"}
    train_scaled(plain, FIVE, *KEYS, **about)
    monkeypatch.setattr(test_p4_guard, "scaled", partial(scaled_beside_memory, kept))
    train_scaled(tmp_path / "run", FIVE, *KEYS, "checkpoint.memory=3", **about)
    assert resumed(tmp_path / "run") == resumed(plain) == [8]
    as_undisturbed(tmp_path / "run", plain)


@settings(max_examples=50, deadline=None)
@given(
    seconds=st.floats(0.5, 5), stall=st.floats(0, 2), written=st.floats(0, 20), beside=st.booleans()
)
def test_auto_is_as_often_as_costs_one_hundredth(seconds, stall, written, beside):
    cost = stall + beside * written
    asked = MemoryCadence("auto", beside, lambda numbers: numbers, lambda line: None)
    asked.stall = stall
    asked.seconds.extend([seconds])
    asked.choose(written)
    assert cost <= 0.01 * asked.interval * seconds * 1.000001
    assert asked.interval * seconds * 1.000001 >= written, "one is there before the next begins"
    one_less = (asked.interval - 1) * seconds
    assert asked.interval == 1 or one_less < max(cost / 0.01, written) * 1.000001


@pytest.mark.full
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "hsdp", "tp"])
@pytest.mark.parametrize("machines", [1, 2, 4])
def test_any_strategy_on_any_machines(undisturbed, tmp_path, strategy, machines):
    """Every rank once, and its machine with its memory where there are several."""
    folder, ranks = tmp_path / "run", 4 // machines
    run = with_memory(folder, strategy, machines, ranks)
    for k, rank in enumerate((0, 3, 1, 2)):
        assert -9 in run.round(f"{('backward', 'step')[k % 2]}-{7 + 3 * k}:{rank}")
        if machines > 1:
            run.lose(rank // ranks)
    assert run.round() == [0] * 4, log_of(folder)
    assert resumed(folder) == [5, 5, 10, 15]
    as_undisturbed(folder, undisturbed(strategy, machines, ranks))


@pytest.mark.slow
def test_the_launcher_goes_on_from_memory_and_leaves_none(undisturbed, tmp_path):
    folder, marks = tmp_path / "run", tmp_path / "marks"
    marks.mkdir()
    keys = ("system.world=2", "system.strategy=ddp", f"steps={STEPS}", "checkpoint.memory=5")
    env = {"VTX_KILL": "step-13:1", "VTX_KILL_ONCE": str(marks)}
    before = set(memory.MEMORY.glob("vtx-memory-*"))
    done = train(folder, *keys, env=env)
    assert "starting again from step 10" in done.stderr
    assert resumed(folder) == [10]
    assert not set(memory.MEMORY.glob("vtx-memory-*")) - before - living()
    assert_none_survives(folder)
    as_undisturbed(folder, undisturbed("ddp", 2, 1))


def living():
    """Folders of launchers of other tests, which run at the same time."""
    there = [(p, memory.NAME.fullmatch(p.name)) for p in memory.MEMORY.glob("vtx-memory-*")]
    return {p for p, m in there if m and memory.started(int(m[3])) == int(m[4])}
