"""P2 of a mix, and of what is changed in a run on the way: interrupted, on other ranks, or with
amendments that came while it rested, it is the undisturbed run.
"""

import json
import shutil
from pathlib import Path

import pytest

from tests.data_pipeline.make import corrupt, jpeg, rows
from tests.ranks import on_ranks
from tests.runs import (
    COLOUR,
    assert_same_bits,
    ids,
    lines,
    log_of,
    losses,
    one_rank,
    run_on_ranks,
    smoke,
    train_on_ranks,
    vtx,
)
from tests.vtx_scale.test_living_run import publish
from vtx_scale.checkpoints import write
from vtx_scale.checkpoints.format import read_manifest, steps
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.tools.shards import write_shard
from vtx_scale.data_pipeline.weights import shares
from vtx_scale.launch import amend, amendments, cli, decided, decisions, override, recipes
from vtx_scale.launch.cli import main
from vtx_scale.launch.datasets import open_data, order_of, thin_sources, training_data
from vtx_scale.launch.decided import Decision
from vtx_scale.launch.paths import checkpoints_of
from vtx_scale.launch.prepare import prepare_folder, refuse
from vtx_scale.launch.run_folder import recipe_of

MIXES = Path(__file__).with_name("mixes.py")
TWO, ONE = f"{MIXES}:two", f"{MIXES}:one"
BATCH = 16
KEYS = ("steps=12", "checkpoint.every=2", "checkpoint.keep=12")
# the third comes before the second, and the fourth takes its place
DECIDED = [
    ("optim.lr", "*0.5", 6),
    ("data.weights", "a:0.2,b:0.8", 9),
    ("optim.lr", "*0.25", 8),
    ("data.weights", "a:1,b:1", 9),
    ("optim.clip", "0.01", 7),
    ("optim.decay", "*2", 10),
    ("schedule.floor", "0.5", 11),
]


def decide(folder: Path, changes=DECIDED) -> Path:
    """As the command writes them, before the run began."""
    (folder / "decisions").mkdir(parents=True)
    for number, (key, value, step) in enumerate(changes, 1):
        body = {"kind": "amend", "step": step, "key": key, "value": value}
        (folder / "decisions" / f"{number:08d}.json").write_text(json.dumps(body))
    return folder


def manifest_of(folder: Path, step: int = -1) -> dict:
    stored = checkpoints_of(folder)
    return read_manifest(stored, steps(stored)[step] if step < 0 else step)


# --- what amendments make of a recipe


def amended(*changes, recipe=TWO):
    made = [Decision(n, s, key=k, value=v) for n, (k, v, s) in enumerate(changes, 1)]
    return amendments.plan(smoke(*KEYS, recipe=recipe), made)


def test_amendments_hold_from_their_step_on():
    plan = amended(*DECIDED)
    run = plan.at(0)
    rates = [plan.at(step).optim.lr / run.optim.lr for step in range(12)]
    assert rates == [1.0] * 5 + [0.5] * 2 + [0.125] * 5
    assert [plan.at(step).optim.clip for step in (5, 6, 11)] == [run.optim.clip, 0.01, 0.01]
    assert plan.at(8).optim.decay * 2 == plan.at(9).optim.decay
    assert [plan.at(step).schedule.floor for step in (9, 10)] == [run.schedule.floor, 0.5]
    assert plan.weights(7) == shares([0.7, 0.3]) and plan.weights(8) == shares([1, 1])
    assert plan.at(11).steps == 12 and override.recipe_hash(run) == override.recipe_hash(
        smoke(*KEYS, recipe=TWO)
    )


def test_a_roll_back_takes_no_amendment_back_and_an_amendment_no_roll_back():
    back, later = Decision(1, 8, 240), Decision(3, 6, 400)
    change = Decision(2, 7, key="optim.lr", value="*0.5")
    assert decided.jumps([back, change]) == {8: 240}
    assert decided.jumps([back, change, later]) == {6: 400}
    assert decided.amendments([back, change, later]) == [change]
    known = {"step": 7, "decisions": ["00000001"]}
    assert decided.abandoned(known, [back, change])
    assert not decided.abandoned({**known, "step": 6}, [back, change])


def test_a_plan_without_amendments_is_the_recipe():
    plan = amended()
    assert plan.behind == (0,) and plan.at(0) is plan.at(10**9)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("steps", "9", "steps cannot be amended"),
        ("optim.betas", "0.9,0.95", "cannot be amended"),
        ("system.world", "2", "cannot be amended"),
        ("data.shards", "/tmp", "cannot be amended"),
        ("optim.lr", "fast", "give a number"),
        ("optim.lr", "*fast", "give a number"),
        ("optim.lr", "0", "above 0"),
        ("optim.lr", "-1", "0 or more"),
        ("optim.lr", "nan", "0 or more"),
        ("optim.lr", "inf", "finite"),
        ("optim.clip", "0", "above 0"),
        ("optim.trunk_lr", "*0.5", "it is none"),
        ("data.weights", "a:1", "give b a weight"),
        ("data.weights", "a:1,b:0", "weight of b is no number above 0"),
        ("data.weights", "a:1,b:1e-9", "less than 1 of 65,536"),
        ("data.weights", "a:1,c:1", "a, b"),
        ("data.weights", "a:1,a:1,b:1", "once"),
    ],
)
def test_what_cannot_be_amended(key, value, words):
    with pytest.raises(UserError, match=words):
        amendments.amended(smoke(*KEYS, recipe=TWO), key, value)
    with pytest.raises(UserError, match=r"decisions/00000001\.json cannot be followed: "):
        amended((key, value, 4))


def test_weights_are_of_a_mix():
    with pytest.raises(UserError, match="no mix"):
        amendments.amended(smoke(), "data.weights", "a:1")


def test_segments_are_those_of_the_undisturbed_run():
    """From the beginning, or from any checkpoint with what its manifest lists."""
    plan = amended(("data.weights", "a:1,b:2", 4), ("data.weights", "a:1,b:2", 6), *DECIDED)
    whole = amendments.segments(plan, [], 0, 0, lambda step: step * BATCH)
    assert whole == [
        (0, shares([7, 3])),
        (3 * BATCH, shares([1, 2])),
        (8 * BATCH, shares([1, 1])),
    ]
    for step in range(1, 12):
        again = amendments.segments(plan, whole, step, step * BATCH, lambda s: s * BATCH)
        assert again == whole, step


def test_segments_behind_a_roll_back_begin_where_the_order_goes_on():
    plan = amended(("data.weights", "a:1,b:2", 5), ("data.weights", "a:2,b:1", 9))

    def start(step):  # back to step 4, on at position 400
        return 400 + (step - 4) * BATCH if step >= 4 else step * BATCH

    before = [(0, shares([7, 3])), (4 * BATCH, shares([1, 2])), (8 * BATCH, shares([2, 1]))]
    assert amendments.segments(plan, before, 4, 4 * BATCH, start) == [
        (0, shares([7, 3])),
        (400, shares([1, 2])),
        (400 + 4 * BATCH, shares([2, 1])),
    ]


def test_weights_that_changed_before_a_checkpoint_are_refused_but_of_a_fork():
    plan = amended(("data.weights", "a:1,b:2", 3))
    known = [(0, shares([1, 1]))]
    with pytest.raises(UserError, match=r"had \[32768, 32768\] .* step 6, .* say \[21845, 43691\]"):
        amendments.segments(plan, known, 6, 96, lambda step: 16 * step)
    forked = amendments.segments(plan, known, 6, 96, lambda step: 16 * step, forked=True)
    assert forked == [*known, (96, shares([1, 2]))]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (("optim.lr", "0.0003", 5), "optim.lr=1e-5"),
        (("optim.lr", "*0.5", 5), "optim.lr=1e-5"),
        (("schedule.floor", "0.5", 7), "schedule.floor=0.1"),
        (("data.weights", "a:1,b:3", 2), "data.weights=a:1,b:1"),
    ],
)
def test_a_fork_that_an_amendment_would_undo_is_refused(folder, change, key):
    """Where the amendment holds already, and the fork gives another value than it."""
    decide(folder, [("optim.clip", "0.01", 1), change])
    publish(folder, 4, 8)
    was = (folder / "run.json").read_bytes()

    def fork(*keys):
        run = smoke(*KEYS, *keys, recipe=TWO)
        prepare_folder(run, folder, refuse(run, folder, 1), fork=True)

    with pytest.raises(UserError, match=rf"00000002.json gives {change[0]}=.* leave {change[0]}"):
        fork(key)
    assert (folder / "run.json").read_bytes() == was
    fork("optim.betas=0.9,0.9")
    if "*" not in change[1]:
        fork(f"{change[0]}={change[1]}")
        assert amendments.value_of(recipe_of(folder), change[0]) == amendments.value_of(
            amended(change).at(8), change[0]
        )


def test_a_fork_gives_a_value_that_is_amended_later(folder):
    decide(folder, [("optim.lr", "*0.5", 10)])
    publish(folder, 4, 8)
    run = smoke(*KEYS, "optim.lr=1e-5", recipe=TWO)
    prepare_folder(run, folder, refuse(run, folder, 1), fork=True)
    plan = amendments.plan(recipe_of(folder), decided.read(folder))
    assert (plan.at(8).optim.lr, plan.at(9).optim.lr) == (1e-5, 5e-6)


# --- the command


@pytest.fixture
def folder(tmp_path):
    """A run that has begun: no step is computed yet."""
    run = smoke(*KEYS, recipe=TWO)
    prepare_folder(run, tmp_path / "run", refuse(run, tmp_path / "run", 1))
    return tmp_path / "run"


def test_an_amendment_is_an_object_of_its_own(folder):
    name = override.from_dict(json.loads((folder / "run.json").read_text())["recipe"])
    before = (folder / "run.json").read_bytes()
    assert amend.amend(folder, "optim.lr", "*0.5", 3)[1:] == ("0.001", "0.0005")
    made, was, now = amend.amend(folder, "optim.lr", "*0.5", 5)
    assert (made.number, was, now) == (2, "0.0005", "0.00025")
    assert amend.amend(folder, "data.weights", "b:1,a:3", 5)[1:] == ("a:0.7,b:0.3", "a:3,b:1")
    assert amend.amend(folder, "optim.clip", "none", 2)[2] == "none"
    body = json.loads((folder / "decisions" / "00000002.json").read_text())
    assert body.pop("time") > 0
    assert body == {"kind": "amend", "step": 5, "key": "optim.lr", "value": "*0.5"}
    assert [d.number for d in decided.amendments(decided.read(folder))] == [4, 1, 2, 3]
    assert (folder / "run.json").read_bytes() == before and name.optim.lr == 0.001
    for key, value in (("steps", "3"), ("optim.lr", "x")):
        with pytest.raises(UserError, match="^(?!decisions)"):
            amend.amend(folder, key, value, 4)
    amend.amend(folder, "optim.clip", "1", 7)
    amend.amend(folder, "optim.clip", "*2", 9)
    with pytest.raises(UserError, match=r"decisions/00000006.json cannot be followed: .*none"):
        amend.amend(folder, "optim.clip", "none", 8)
    assert len(decided.read(folder)) == 6


def test_a_step_that_was_computed_or_does_not_come_is_refused(folder):
    for at, words in ((0, "has finished step 0"), (-4, "finished"), (13, "ends with step 12")):
        with pytest.raises(UserError, match=words):
            amend.amend(folder, "optim.lr", "*0.5", at)
    (folder / "metrics.jsonl").write_text('{"step": 1}\n{"step": 7}\n{"torn')
    with pytest.raises(UserError, match=r"--at 7: the run has finished step 7 .* step 0\)"):
        amend.amend(folder, "optim.lr", "*0.5", 7)
    assert not (folder / "decisions").exists()
    assert amend.amend(folder, "optim.lr", "*0.5", 8)[0].step == 8


def test_the_command_takes_one_change_of_what_can_be_amended(folder, capsys):
    for words, said in (
        (["optim.betas=0.9,0.99"], "optim.betas"),
        (["optim.lr=*0.5", "optim.clip=1"], "One change is one decision"),
        (["optim.lr"], "not key=value"),
    ):
        assert main(["amend", str(folder), *words, "--at", "4"]) == 2
        assert said in capsys.readouterr().err
    assert not (folder / "decisions").exists()


def test_the_number_that_another_has_taken_is_left_to_it(folder, monkeypatch):
    plain, taken = decided.read, []

    def read(at):
        found = plain(at)
        if not taken:
            taken.append(decide(folder, [("optim.lr", "2", 4)]))
        return found

    monkeypatch.setattr(amend, "read", read)
    assert amend.amend(folder, "optim.lr", "*0.5", 4)[0].number == 2
    assert [d.value for d in plain(folder)] == ["2", "*0.5"]


def test_the_command_says_that_a_living_run_does_not_see_it(folder):
    done = vtx("amend", folder, "optim.lr=*0.5", "--at", 3)
    assert done.returncode == 0 and done.stdout.splitlines() == [
        "decisions/00000001.json: from step 3 on optim.lr is 0.0005, and was 0.001"
    ]
    assert "does not see it" in done.stderr and f"touch {folder}/control/stop'" in done.stderr
    assert "before step 3" in done.stderr and "computed again" not in done.stderr
    row = json.loads(vtx("amend", folder, "data.weights=a:1,b:3", "--at", 4, "--json").stdout)
    assert (row["decision"], row["was"], row["now"]) == ("00000002", "a:0.7,b:0.3", "a:1,b:3")
    refused = vtx("amend", folder, "optim.lr", "--at", 3)
    assert refused.returncode == 2 and "is not key=value" in refused.stderr
    shown = vtx("show", folder)
    assert shown.returncode == 0, shown.stderr
    table = {line.split()[0]: line.split()[1:] for line in shown.stdout.splitlines() if line}
    assert table["optim.lr"] == "0.001 *0.5 from step 3".split()
    assert table["data.weights"] == "a:1,b:3 from step 4".split()
    body = json.loads(vtx("show", folder, "--json").stdout)
    assert body["hash"] == json.loads((folder / "run.json").read_text())["hash"]
    assert [(d["kind"], d["step"], d["key"], d["value"]) for d in body["decisions"]] == [
        ("amend", 3, "optim.lr", "*0.5"),
        ("amend", 4, "data.weights", "a:1,b:3"),
    ]
    assert vtx("amend", folder.parent, "optim.lr=1", "--at", 3).returncode == 2


# --- recipes of mixes


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (("data.shards=/tmp",), "give shards or sources, not both"),
        (("data.sources.0.weight=0",), r"data.sources.0.weight=0: give a number above 0"),
        (("data.sources.1.weight=1e-9",), "less than 1 of 65,536"),
        (("data.sources.1.name=a",), r"data.sources.1.name=a: give each source a name of its own"),
        (("data.sources.1.name=",), "name of its own"),
        (("data.sources.1.name=a:b",), "letters, digits"),
        (("data.sources.2.name=c",), "data.sources.0 to data.sources.1|sources.0 to sources.1"),
        (("data.weights=a:1",), "give b a weight"),
        (("data.sources.0.shards=https://h/x",), "https"),
    ],
)
def test_mixes_that_cannot_be(keys, words):
    with pytest.raises(UserError, match=words):
        smoke(*keys, recipe=TWO)


def test_weights_count_in_the_hash_and_names_do_not():
    def named(*keys, recipe=TWO):
        return override.recipe_hash(smoke(*keys, recipe=recipe), "data")

    plain = named()
    assert plain == named("data.weights=a:7,b:3") == named("data.sources.0.name=c")
    assert plain != named("data.weights=a:0.8,b:0.2")
    assert (
        named(recipe=ONE)
        == named("data.weights=a:0.2", recipe=ONE)
        == override.recipe_hash(smoke(), "data")
    ), "a mix of one is that source"
    assert override.from_dict(json.loads(json.dumps(override.to_dict(smoke(recipe=TWO))))) == smoke(
        recipe=TWO
    )


def test_each_source_holds_out_its_own(tmp_path):
    """By its keys, as alone; training and validation of a mix share no sample."""
    for name, first in (("a", 0), ("b", 5)):
        (tmp_path / name).mkdir()
        members = [row for s in range(first, first + 3) for row in rows(s, 30)]
        write_shard(tmp_path / name / "s.tar", members)
    keys = [f"data.sources.{k}.shards={tmp_path / name}" for k, name in enumerate("ab")]
    run = smoke("data.hold_out=0.3", *keys, recipe=TWO)
    kept, held = training_data(run), open_data(run, False)
    assert kept.names == held.names == ("a", "b") and held.n + kept.n == 180
    for k, name in enumerate("ab"):
        alone = smoke("data.hold_out=0.3", f"data.shards={tmp_path / name}")
        for mine, other in ((kept, training_data(alone)), (held, open_data(alone, False))):
            assert mine.indexes[k].keep.tolist() == other.index.keep.tolist()
            assert mine.indexes[k].digest == other.index.digest
    assert order_of(run, *kept.indexes).n == kept.n
    assert len(order_of(run, *kept.indexes).orders) == 2


def test_sources_of_other_classes_have_no_common_ones(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        write_shard(tmp_path / name / "s.tar", rows(0, 3))
    keys = [f"data.sources.{k}.shards={tmp_path / name}" for k, name in enumerate("ab")]
    run = smoke(*keys, recipe=TWO)
    assert training_data(run).classes is None
    (tmp_path / "b" / "classes.txt").write_text("cat\ndog\n")
    assert training_data(run).classes == ["cat", "dog"]
    (tmp_path / "a" / "classes.txt").write_text("dog\ncat\n")
    with pytest.raises(UserError, match=r"sources a and b have different classes\.txt"):
        _ = training_data(run).classes


def test_shards_of_sources_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = smoke("data.sources.0.shards=x/*.tar, y", "data.sources.1.shards=s3://b/c", recipe=TWO)
    assert [s.shards for s in run.data.sources] == [f"{tmp_path}/x/*.tar,{tmp_path}/y", "s3://b/c"]


def test_a_source_with_few_samples_for_the_lanes_is_told(tmp_path):
    for name, count in (("a", 7), ("b", 600)):
        (tmp_path / name).mkdir()
        write_shard(tmp_path / name / "s.tar", [(f"{i:04d}", {"txt": b"x"}) for i in range(count)])
    keys = [f"data.sources.{k}.shards={tmp_path / name}" for k, name in enumerate("ab")]
    run = smoke(*keys, recipe=TWO)
    assert [line[:36] for line in thin_sources(run, training_data(run))] == [
        "source a has 7 samples for 2 lanes, "
    ]
    alone = smoke(f"data.shards={tmp_path / 'a'}", "data.lanes=7")
    assert not thin_sources(alone, training_data(alone))


def order_rows(capsys, *arguments):
    assert cli.main(["data", "order", TWO, "--smoke", "--json", *arguments]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_order_of_a_mix_names_its_sources(capsys):
    rows = order_rows(capsys, "--steps", "4")
    parts = order_rows(capsys, "--steps", "4", "--world", "3")
    for row in rows:
        mine = [i for p in parts if p["step"] == row["step"] for i in p["ids"]]
        assert [i for i in mine if i is not None] == row["ids"]
    names = [i.partition(":")[0] for row in rows for i in row["ids"]]
    assert set(names) == {"a", "b"} and abs(names.count("a") - 0.7 * 64) <= 3
    assert rows[0]["ids"][0].startswith(("a:toy-00", "b:toy-00"))
    assert order_rows(capsys, "data.weights=a:1,b:9")[0]["ids"] != rows[0]["ids"]


# --- runs


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """One process, from the start to the end; its decisions were there before it began."""
    folder = decide(tmp_path_factory.mktemp("undisturbed") / "run")
    train_on_ranks(folder, 1, "single", *KEYS, recipe=TWO)
    return folder


@pytest.mark.slow
def test_rates_and_weights_are_those_of_the_decisions(undisturbed):
    rows = lines(undisturbed / "metrics.jsonl")
    plan = amended(*DECIDED)
    for step, row in enumerate(rows):
        holds = plan.at(step)
        assert row["lr"] == holds.optim.lr * holds.schedule(step, 12)
    end = manifest_of(undisturbed)
    assert end["data"]["segments"] == [[0, [45875, 19661]], [8 * BATCH, [32768, 32768]]]
    assert end["decisions"] == [f"{n:08d}" for n in range(1, 8)]
    counts = [rows[-1][f"samples/{name}"] for name in "ab"]
    assert sum(counts) == rows[-1]["samples"] == 12 * BATCH and end["sources"] == counts
    order = order_of(smoke(*KEYS, recipe=TWO), *training_data(smoke(recipe=TWO)).indexes)
    order.set_segments([(at, tuple(w)) for at, w in end["data"]["segments"]])
    assert counts == order.counts(12 * BATCH).tolist()
    assert [rows[-1][f"epochs/{name}"] for name in "ab"] == [n / 256 for n in counts]
    told = [r for r in lines(undisturbed / "ledger.jsonl") if r["kind"] == "decision"]
    assert [(r["reason"], r["from"], r["key"], r["value"]) for r in told] == [
        ("amend", step, key, value) for key, value, step in DECIDED
    ]


@pytest.mark.slow
def test_interrupted_and_amended_on_the_way_it_is_the_undisturbed_run(tmp_path, undisturbed):
    """Amended by the command while it rested, left in the middle of a block and of a segment."""
    folder = tmp_path / "run"
    train_on_ranks(folder, 1, "single", *KEYS, "system.leave_after=3", recipe=TWO, code=75)
    for key, value, step in DECIDED[:3]:
        amend.amend(folder, key, value, step)
    train_on_ranks(folder, 1, "single", *KEYS, "system.leave_after=3", recipe=TWO, code=75)
    for key, value, step in DECIDED[3:]:
        amend.amend(folder, key, value, step)
    with pytest.raises(UserError, match="has finished step 6"):
        amend.amend(folder, "optim.lr", "*0.5", 6)
    train_on_ranks(folder, 1, "single", *KEYS, "system.leave_after=3", recipe=TWO, code=75)
    assert manifest_of(folder)["step"] == 9
    train_on_ranks(folder, 1, "single", *KEYS, recipe=TWO)
    assert losses(folder) == losses(undisturbed) and ids(folder) == ids(undisturbed)
    assert_same_bits(folder, undisturbed)
    ends = [manifest_of(f) for f in (folder, undisturbed)]
    for name in ("applied", "samples", "data", "sources", "decisions", "hash"):
        assert ends[0][name] == ends[1][name], name
    for name in ("samples/a", "epochs/a", "samples/b", "epochs/b"):
        both = [[row[name] for row in lines(f / "metrics.jsonl")] for f in (folder, undisturbed)]
        assert both[0] == both[1], name


@pytest.mark.slow
@pytest.mark.parametrize(("world", "strategy"), [(2, "ddp"), (2, "fsdp"), (3, "ddp")])
def test_another_world_follows_the_same_decisions(tmp_path, undisturbed, world, strategy):
    folder = decide(tmp_path / "run")
    train_on_ranks(folder, 1, "single", *KEYS, "system.leave_after=5", recipe=TWO, code=75)
    train_on_ranks(folder, world, strategy, *KEYS, recipe=TWO)
    assert ids(folder) == ids(undisturbed)
    assert losses(folder) == pytest.approx(losses(undisturbed), rel=1e-5)
    for name in ("data", "sources", "decisions", "samples"):
        assert manifest_of(folder)[name] == manifest_of(undisturbed)[name]


@pytest.mark.slow
def test_what_a_living_run_computed_without_knowing_is_computed_again(tmp_path, undisturbed):
    """Amended at step 6 while it went on to step 9: back to step 4, and said."""
    folder = tmp_path / "run"
    train_on_ranks(folder, 1, "single", *KEYS, "system.leave_after=9", recipe=TWO, code=75)
    decide(folder)
    train_on_ranks(folder, 1, "single", *KEYS, recipe=TWO)
    assert losses(folder) == losses(undisturbed)
    assert_same_bits(folder, undisturbed)
    assert manifest_of(folder)["data"] == manifest_of(undisturbed)["data"]


@pytest.mark.slow
def test_where_no_checkpoint_from_before_is_left_nothing_is_removed(tmp_path):
    folder = tmp_path / "run"
    keys = (*KEYS[:2], "checkpoint.keep=1", "system.leave_after=9")
    train_on_ranks(folder, 1, "single", *keys, recipe=TWO, code=75)
    heard: list[str] = []
    for step in (6, 1):
        decide(folder, [("optim.lr", "*0.5", step)])
        with pytest.raises(
            UserError, match=rf"before step {step}, .* of decisions/00000001\.json: rem"
        ):
            decisions.sweep(folder, decided.read(folder), heard.append)
        assert steps(checkpoints_of(folder)) == [9] and not heard
        shutil.rmtree(folder / "decisions")
    decide(folder, [("optim.lr", "*0.5", 10)])
    decisions.sweep(folder, decided.read(folder), heard.append)
    assert steps(checkpoints_of(folder)) == [9] and not heard


def amended_rank(recipe, folder, paths):
    """The worker, whose run is amended for step 9 when step 4 is saved."""
    write.failpoint = lambda name: (
        amend.amend(folder, "optim.lr", "*0.5", 9) if name == "after-manifest-4" else None
    )
    code = one_rank(recipe, folder, paths)
    heard = amend.hint(folder, decided.read(folder)[0])
    assert "from step 9 on until then is computed again" in heard
    return code


@pytest.mark.slow
def test_a_run_keeps_what_an_amendment_goes_back_to(tmp_path):
    """Of two checkpoints that are kept, none would be from before when it ends."""
    keys = ("steps=12", "checkpoint.every=2", "checkpoint.keep=2", "system.strategy=single")
    run, folder = smoke(*keys, recipe=COLOUR), tmp_path / "run"
    prepare_folder(run, folder, refuse(run, folder, 1))
    recipe = override.to_dict(run)
    assert on_ranks(1, amended_rank, recipe, folder, recipes.STRANGERS) == [0]
    assert steps(checkpoints_of(folder)) == [8, 10, 12]
    assert on_ranks(1, one_rank, recipe, folder, recipes.STRANGERS) == [0]
    assert steps(checkpoints_of(folder)) == [10, 12]
    rates = [row["lr"] for row in lines(folder / "metrics.jsonl")]
    assert rates == [
        holds.optim.lr * holds.schedule(step, 12)
        for step in range(12)
        for holds in [amendments.plan(run, decided.read(folder)).at(step)]
    ]
    assert rates[8] < 0.6 * run.optim.lr * run.schedule(8, 12)


@pytest.mark.slow
def test_a_mix_of_one_trains_as_its_source(tmp_path):
    """Losses, state and hash; the run may go on as the other."""
    keys = ("steps=6", "checkpoint.every=3", "checkpoint.keep=3")
    train_on_ranks(tmp_path / "plain", 1, "single", *keys)
    train_on_ranks(
        tmp_path / "mix", 1, "single", *keys, "system.leave_after=3", recipe=ONE, code=75
    )
    train_on_ranks(tmp_path / "mix", 1, "single", *keys)
    assert losses(tmp_path / "mix") == losses(tmp_path / "plain")
    assert ids(tmp_path / "mix") == ids(tmp_path / "plain")
    assert_same_bits(tmp_path / "mix", tmp_path / "plain")
    about = [json.loads((tmp_path / n / "run.json").read_text()) for n in ("mix", "plain")]
    assert about[0]["hash"] == about[1]["hash"] and about[0]["data"] == about[1]["data"]
    first, last = (manifest_of(tmp_path / "mix", step) for step in (3, 6))
    assert first["data"] == manifest_of(tmp_path / "plain", 3)["data"]
    assert last["data"] == manifest_of(tmp_path / "plain", 6)["data"]
    rows = lines(tmp_path / "mix" / "metrics.jsonl")
    assert [row.get("samples/a") for row in rows] == [16, 32, 48, None, None, None]


@pytest.mark.slow
def test_a_fork_with_other_weights_goes_on_where_it_stands(tmp_path):
    folder, keys = tmp_path / "run", ("steps=8",)
    train_on_ranks(folder, 1, "single", *keys, "system.leave_after=5", recipe=TWO, code=75)
    run = smoke("system.strategy=single", *keys, "data.weights=a:1,b:3", recipe=TWO)
    with pytest.raises(UserError, match=r"data.sources.0.weight was 0.7, is 1"):
        prepare_folder(run, folder, refuse(run, folder, 1))
    prepare_folder(run, folder, refuse(run, folder, 1), fork=True)
    assert on_ranks(1, one_rank, override.to_dict(run), folder, recipes.STRANGERS) == [0]
    assert manifest_of(folder)["data"]["segments"] == [
        [0, [45875, 19661]],
        [5 * BATCH, [16384, 49152]],
    ]


@pytest.mark.slow
def test_a_source_with_too_many_bad_samples_is_named(tmp_path):
    """Of each source the limit holds alone: few of all slots are bad, and none of one source can be
    used.
    """
    for name, broken in (("a", False), ("b", True)):
        (tmp_path / name).mkdir()
        members = dict(rows(0, 90))
        for i, member in enumerate(members.values()):
            member["jpg"] = corrupt(jpeg(i)) if broken else jpeg(i)
        write_shard(tmp_path / name / "s.tar", members.items())
    keys = [f"data.sources.{k}.shards={tmp_path / name}" for k, name in enumerate("ab")]
    keys += ["data.val_shards=", "steps=60", "data.weights=a:9,b:1", "data.bad_limit=0.9"]
    run = smoke("system.strategy=single", *keys, recipe=TWO)
    assert run_on_ranks(run, tmp_path / "run", 1) == [2]
    rows_of = lines(tmp_path / "run" / "metrics.jsonl")
    assert rows_of[-1]["samples/b"] == 0 and rows_of[-1]["samples/a"] > 300
    bad = [r for r in lines(tmp_path / "run" / "ledger.jsonl") if r["kind"] == "sample"]
    assert {(r["source"], r["shard"], r["reason"]) for r in bad} == {(1, "b:s.tar", "jpeg_corrupt")}
    assert 64 <= len(bad) < 90, log_of(tmp_path / "run")
