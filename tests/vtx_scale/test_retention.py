"""Which checkpoints stay, and when one is due."""

import importlib
import json
import math
from dataclasses import replace

import pytest

from tests.runs import COLOUR, lines, log_of, smoke, train_on_ranks, vtx
from tests.vtx_scale.test_living_run import publish
from vtx_scale.checkpoints.format import steps
from vtx_scale.checkpoints.write import prune
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.storage import Folder
from vtx_scale.evaluators import NAMES
from vtx_scale.launch import checkpoints, override
from vtx_scale.launch.paths import checkpoints_of
from vtx_scale.launch.prepare import refuse
from vtx_scale.launch.resolve import resolve_data
from vtx_scale.launch.retention import before_window, direction, stays
from vtx_scale.launch.run_folder import acquire_lease
from vtx_scale.specs.run import Checkpoint, Evaluation
from vtx_scale.trainer import cadence
from vtx_scale.trainer.cadence import Cadence
from vtx_scale.trainer.loop import to_keep


def recipe(*keys, name="zero_shot"):
    return override.override(replace(smoke(), evaluate=(Evaluation(name=name),)), list(keys))


def say(folder, *rows):
    folder.mkdir(exist_ok=True)
    with (folder / "evaluations.jsonl").open("a") as file:
        for step, name, scores in rows:
            file.write(json.dumps({"step": step, "name": name, **scores}) + "\n")


def test_milestones_stay(tmp_path):
    chosen = stays(recipe("checkpoint.keep_every=10"), tmp_path)
    assert chosen([5, 10, 15, 20, 35]) == {10, 20}
    assert stays(recipe(), tmp_path)([5, 10]) == set()


@pytest.mark.parametrize("every", [1, 7, 30, 99, 100, 101, 250, 500])
def test_a_checkpoint_before_the_guards_window_stays(every):
    """A run saves every so many steps, and all but the newest one and what stays is removed: at
    any step there is one from before the window, and not more than three windows before, or two
    saves; and never more than five.
    """
    window, there = 100, []
    for step in range(1, 12 * max(window, every)):
        if step % every == 0:
            there = sorted(before_window([*there, step], window) | {step})
            assert len(there) <= 5
        early = [s for s in there if s <= step - window]
        assert early or step < window + every
        assert not early or max(early) > step - max(3 * window, window + 2 * every)
    assert before_window([500, 1000, 1500], 100) >= {1000}
    assert before_window([], 100) == set()


@pytest.mark.parametrize(
    ("name", "number", "best"), [("zero_shot", "top1", 20), ("loss", "loss", 10)]
)
def test_the_best_stays_whichever_way_is_better(tmp_path, name, number, best):
    """Of those that are there; the newest of equal ones; what is no number is not the best."""
    say(
        tmp_path,
        *((step, name, {number: v}) for step, v in ((5, 99.0), (10, 0.1), (15, 0.5), (20, 0.9))),
        (15, "another", {number: 999.0}),
        (25, name, {number: math.nan}),
        (30, name, {number: "word"}),
        (35, name, {}),
    )
    with (tmp_path / "evaluations.jsonl").open("a") as file:
        file.write("torn\n")
    chosen = stays(recipe(f"checkpoint.best={name}/{number}", name=name), tmp_path)
    assert chosen([10, 15, 20, 25, 30, 35, 40]) == {best}
    assert chosen([25, 40]) == set()
    equal = {"zero_shot": 0.9, "loss": 0.1}[name]
    say(tmp_path, (40, name, {number: equal}))
    assert chosen([10, 15, 20, 25, 40]) == {40}


def test_the_evaluator_says_which_way_is_better():
    """Each has such a number, but those that draw pictures."""
    silent = set()
    for name in NAMES:
        module = importlib.import_module(f"vtx_scale.evaluators.{name}")
        both = (*getattr(module, "HIGHER", ()), *getattr(module, "LOWER", ()))
        if not both:
            silent.add(name)
    assert silent == {"samples", "completions"}
    assert (direction("retrieval", "image_to_text@5"), direction("reconstruction", "rmse")) == (
        1,
        -1,
    )
    with pytest.raises(UserError, match="does not say which way samples is better, but of top1"):
        direction("zero_shot", "samples")


@pytest.mark.parametrize("best", ["top1", "knn/top1@1", "zero_shot/", "/top1"])
def test_a_best_of_nothing_is_refused_before_the_start(best):
    with pytest.raises(UserError, match=r"give EVALUATOR/NUMBER .*\(zero_shot\)"):
        recipe(f"checkpoint.best={best}")


def test_a_number_that_no_evaluator_has_is_refused_before_the_start(tmp_path):
    run = resolve_data(recipe("checkpoint.best=zero_shot/nope"))
    with pytest.raises(UserError, match="zero_shot does not say which way nope is better"):
        refuse(run, tmp_path / "run", 1)
    assert not (tmp_path / "run").exists()
    refuse(replace(run, checkpoint=Checkpoint(best="zero_shot/top1")), tmp_path / "run", 1)


def test_what_stays_is_beside_the_newest(tmp_path):
    publish(tmp_path, 9, 8)
    storage = checkpoints_of(tmp_path)
    assert prune(storage, 2, lambda there: {2, 4, 99}) == [1, 3, 5, 6]
    assert steps(storage) == [2, 4, 7, 8]


def test_what_a_decision_goes_back_to_stays(tmp_path):
    """Of each that the run does not follow, the newest from before; of one that cannot be read,
    what was read before it holds.
    """
    store = Folder(tmp_path / "decisions")

    def amend(number, step):
        body = {"kind": "amend", "step": step, "key": "optim.lr", "value": "*0.5"}
        store.put(f"{number:08d}.json", json.dumps(body).encode())

    chosen = stays(recipe(), tmp_path, ["00000001"])
    assert chosen([2, 4]) == set()
    amend(1, 3)
    amend(2, 9)
    store.put("00000003.json", b'{"kind": "roll_back", "step": 6, "position": 1}')
    assert chosen([2, 4, 6, 8, 10]) == {6, 8} and chosen([7, 10]) == {7}
    store.put("00000004.json", b"torn")
    assert chosen([8, 10, 12]) == {8} and chosen([10, 12]) == set()
    assert stays(recipe(), tmp_path)([2, 4, 8, 10]) == set()


def test_prune_removes_what_the_rules_let_go_and_is_refused_while_a_job_writes(tmp_path):
    folder = tmp_path / "run"
    publish(folder, 9, 6)
    keys = ("checkpoint.keep=1", "checkpoint.keep_every=4", "checkpoint.best=zero_shot/top1")
    (folder / "run.json").write_text(json.dumps({"recipe": override.to_dict(recipe(*keys))}))
    say(folder, (2, "zero_shot", {"top1": 0.9}), (6, "zero_shot", {"top1": 0.8}))
    left = folder / "checkpoints" / "step-00000099" / "data-00000.e1.safetensors"
    left.parent.mkdir()
    left.write_bytes(b"half")
    with acquire_lease(folder):
        done = vtx("checkpoints", folder, "--prune")
        assert done.returncode == 2 and "is being written by process" in done.stderr
    assert steps(checkpoints_of(folder)) == [1, 2, 3, 4, 5, 6]
    done = vtx("checkpoints", folder, "--prune", "--verify", "--json")
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["step"] for line in done.stdout.splitlines()] == [2, 4, 6]
    assert not left.parent.exists()


def test_prune_removes_what_was_abandoned_and_not_what_it_goes_back_to(tmp_path):
    """A run that went back from step 6 to step 3 and has saved nothing since."""
    folder = tmp_path / "run"
    publish(folder, 9, 6)
    body = {"recipe": override.to_dict(recipe("checkpoint.keep=2"))}
    (folder / "run.json").write_text(json.dumps(body))
    Folder(folder / "decisions").put(
        "00000001.json", b'{"kind": "roll_back", "step": 3, "position": 48}'
    )
    checkpoints.clear(folder)
    assert steps(checkpoints_of(folder)) == [2, 3]
    Folder(folder / "decisions").put(
        "00000002.json", b'{"kind": "roll_back", "step": 1, "position": 48}'
    )
    with pytest.raises(UserError, match="no checkpoint from before is left"):
        checkpoints.clear(folder)
    assert steps(checkpoints_of(folder)) == [2, 3]


@pytest.mark.slow
def test_a_run_keeps_them(tmp_path):
    """At this rate it is worse at the end than before."""
    folder, name = tmp_path / "run", "average_colour:colour_error"
    keys = ("checkpoint.every=2", "checkpoint.keep=1", "checkpoint.keep_every=6", "optim.lr=3")
    more = (f"checkpoint.best={name}/error", "evaluate.0.every=4")
    train_on_ranks(folder, 1, "single", *keys, *more, recipe=COLOUR)
    errors = {row["step"]: row["error"] for row in lines(folder / "evaluations.jsonl")}
    assert list(errors) == [4, 8, 12] and min(errors, key=errors.__getitem__) == 8, errors
    assert steps(checkpoints_of(folder)) == [6, 8, 12]


def due_at(monkeypatch, every, steps, *, stall=0.5, seconds=2.0, world=1, rate=1.0, written=0.0):
    """The steps at which a checkpoint is due, and what was said, by a clock of our own."""
    clock, said = [100.0], []
    monkeypatch.setattr(cadence.time, "perf_counter", lambda: clock[0])
    asked = Cadence(every, rate, world, lambda numbers: numbers, said.append)
    found = []
    for step in range(1, steps + 1):
        clock[0] += seconds + (60 if step == 1 else 0)  # the first one compiles
        if asked.due(step, written):
            found.append(step)
            clock[0] += stall
            asked.stall = stall
    return found, said


def test_every_so_many_steps(monkeypatch):
    assert due_at(monkeypatch, 4, 13) == ([4, 8, 12], [])
    assert due_at(monkeypatch, 0, 13) == ([], [])


@pytest.mark.parametrize(
    ("stall", "seconds", "world", "rate"),
    [(0.5, 2.0, 1, 1.0), (0.01, 0.2, 1024, 5e-4), (30.0, 1.0, 64, 0.01)],
)
def test_as_often_as_faults_are_worth(monkeypatch, stall, seconds, world, rate):
    """Against the least of the cost itself, looked for among all intervals."""
    mean = 86_400 / (world * rate)

    def cost(n):
        return stall / (n * seconds) + n * seconds / 2 / mean

    best = min(range(1, 400_000), key=cost)
    found, said = due_at(
        monkeypatch, "auto", 30 + 2 * best, stall=stall, seconds=seconds, world=world, rate=rate
    )
    first = 1 + cadence.WARM
    assert found[0] == first and abs(found[1] - first - best) <= 1
    assert len(said) == 1 and f"a save holds up {stall:.3f} s" in said[0]


def test_a_save_is_not_asked_for_while_the_last_is_written(monkeypatch):
    found, _ = due_at(monkeypatch, "auto", 400, stall=1e-9, seconds=1.0, written=90.0)
    assert [b - a for a, b in zip(found, found[1:], strict=False)] == [90] * (len(found) - 1)


def test_all_ranks_choose_what_the_first_measured():
    said = []
    other = Cadence("auto", 1.0, 2, lambda numbers: [0.5, 2.0, 0.0], said.append)
    other.stall = 77.0
    other.seconds.extend([9.0])
    other.choose(33.0)
    assert other.interval == math.ceil(math.sqrt(2 * 0.5 * 43_200) / 2)


@pytest.mark.slow
def test_a_run_says_how_often_it_saves(tmp_path):
    """On two ranks; the first save is the one that is measured."""
    folder = tmp_path / "run"
    keys = ("checkpoint.every=auto", "checkpoint.fault_rate=1e6", "steps=60", "checkpoint.keep=99")
    train_on_ranks(folder, 2, "ddp", *keys, recipe=COLOUR)
    assert "checkpoint.every=auto: a save holds up" in log_of(folder)
    found = steps(checkpoints_of(folder))
    assert found[0] == 1 + cadence.WARM and found[-1] == 60 and len(found) > 2
    assert len(lines(folder / "metrics.jsonl")) == 60


def test_auto_saves_what_is_to_be_kept():
    """Multiples of keep_every, and where the evaluator of best looks; a number is the user's."""

    def at(*keys):
        run = recipe("steps=20", *keys)
        return [step for step in range(1, 20) if to_keep(run, step)]

    auto, best = "checkpoint.every=auto", "checkpoint.best=zero_shot/top1"
    assert at(auto) == at(auto, "evaluate.0.every=5") == at(auto, best) == []
    assert at(auto, "checkpoint.keep_every=6") == [6, 12, 18]
    assert at(auto, best, "evaluate.0.every=5") == [5, 10, 15]
    assert at("checkpoint.every=4", best, "checkpoint.keep_every=6", "evaluate.0.every=5") == []


@pytest.mark.slow
def test_a_run_under_auto_keeps_them(tmp_path):
    """It ends before auto has measured a save."""
    folder, name = tmp_path / "run", "average_colour:colour_error"
    keys = ("checkpoint.every=auto", "checkpoint.keep=1", "checkpoint.keep_every=5", "optim.lr=3")
    more = (f"checkpoint.best={name}/error", "evaluate.0.every=4")
    train_on_ranks(folder, 1, "single", *keys, *more, recipe=COLOUR)
    errors = {row["step"]: row["error"] for row in lines(folder / "evaluations.jsonl")}
    best = min(errors, key=errors.__getitem__)
    assert best < 12 and steps(checkpoints_of(folder)) == sorted({5, 10, best, 12})


def test_auto_is_a_word_of_the_command(tmp_path):
    assert recipe("checkpoint.every=auto").checkpoint.every == "auto"
    assert recipe("checkpoint.every=7").checkpoint.every == 7
    for wrong in ("often", "-1", "1.5"):
        with pytest.raises(UserError, match="checkpoint.every"):
            recipe(f"checkpoint.every={wrong}")
    run = recipe("checkpoint.every=auto", "checkpoint.keep_every=3")
    assert override.from_dict(override.to_dict(run)) == run
    assert override.recipe_hash(run) == override.recipe_hash(recipe())
