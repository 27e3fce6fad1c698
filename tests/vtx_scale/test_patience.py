"""`stop.patience`: after which evaluation a run ends, also where it was killed on the way."""

import json
import math
import textwrap
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.runs import (
    assert_same_bits,
    lines,
    log_of,
    losses,
    run_on_ranks,
    smoke,
    train,
    vtx,
)
from vtx_scale.checkpoints.format import steps
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.launch.checks import check
from vtx_scale.launch.override import recipe_hash
from vtx_scale.launch.paths import checkpoints_of
from vtx_scale.launch.stopping import Stopping
from vtx_scale.specs.run import Evaluation
from vtx_scale.strategies.base import Base
from vtx_scale.trainer.patience import Patience

NUMBERS = st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.3, math.nan, math.inf]), max_size=12)
ON = ("stop.patience=2", "stop.number=zero_shot/top1", "evaluate.0.every=2")
# nothing is learned, so that no evaluation is better than the first: the third is the last
STILL = (*ON, "optim.lr=1e-30", "optim.decay=0", "steps=20", "checkpoint.every=4")


def judged(values: list[float], sign: int) -> list[Patience]:
    """Behind each evaluation, at steps 5, 10 and so on."""
    out, patience = [], Patience()
    for k, value in enumerate(values):
        patience = patience.after(5 * (k + 1), value, sign)
        out.append(patience)
    return out


@given(NUMBERS, st.sampled_from([1, -1]))
def test_it_is_the_best_and_what_came_since(values, sign):
    for k, patience in enumerate(judged(values, sign)):
        sound = [(sign * v, -i) for i, v in enumerate(values[: k + 1]) if math.isfinite(v)]
        best, at = max(sound) if sound else (None, 1)
        assert patience.best == (None if best is None else sign * best)
        assert patience.at == 5 * (1 - at) and patience.since == k + at
        assert patience.step == 5 * (k + 1)


@given(NUMBERS, st.integers(0, 12))
def test_a_resume_judges_as_if_the_run_had_stayed(values, kept):
    """From what a manifest has, and from lines that it may know already."""
    whole = Patience()
    for patience in judged(values, 1):
        whole = patience
    state = judged(values[:kept], 1)[-1] if values[:kept] else Patience()
    resumed = Patience.of(json.loads(json.dumps(state.state())))
    for k, value in enumerate(values):  # older lines change nothing
        resumed = resumed.after(5 * (k + 1), value, 1)
    assert resumed == whole


def test_what_a_manifest_says_is_gone_on_from(tmp_path):
    """The lines of before may be gone; those beyond the step are of a start that is abandoned."""
    rows = [(2, 0.9), (8, 0.3), (10, 0.4)]
    (tmp_path / "evaluations.jsonl").write_text(
        "".join(f'{{"step":{s},"name":"zero_shot","top1":{v}}}\n' for s, v in rows)
    )
    stopping = Stopping(smoke(*ON), tmp_path, Base(torch.device("cpu")))
    stopping.load({"stop": {"step": 6, "best": 0.5, "at": 6, "since": 0}}, 8)
    assert stopping.patience == Patience(8, 0.5, 6, 1) and not stopping.over
    stopping.hear("zero_shot", {"top5": 0.0}, 10)
    stopping.hear("knn", {"top1": 0.0}, 10)
    assert not stopping.over
    stopping.hear("zero_shot", {"top1": 0.5}, 10)
    assert stopping.over


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["stop.patience=3"], "stop.patience and stop.number go together"),
        (["stop.number=zero_shot/top1"], "stop.patience and stop.number go together"),
        (["stop.patience=-1"], "stop.patience=-1: give 1 or more"),
        (
            ["stop.patience=3", "stop.number=knn/top1"],
            "stop.number=knn/top1: give EVALUATOR/NUMBER of an evaluator in the loop",
        ),
        (
            ["stop.patience=3", "stop.number=zero_shot/top1"],
            "zero_shot looks at the model at the end alone; add evaluate.0.every=STEPS",
        ),
    ],
)
def test_what_could_never_stop_a_run_is_refused(keys, words):
    with pytest.raises(UserError) as e:
        check(smoke(*keys))
    assert words in str(e.value)


def test_it_is_in_the_hash_where_it_is_on():
    assert recipe_hash(smoke("stop.patience=0", "stop.number=")) == recipe_hash(smoke())
    other = ("stop.number=zero_shot/top5", *ON[2:])
    assert recipe_hash(smoke(*ON)) != recipe_hash(smoke(ON[0], *other))
    assert recipe_hash(smoke(*ON)) != recipe_hash(smoke(ON[2]))


@pytest.mark.slow
def test_a_number_without_a_direction_and_without_samples_is_refused(tmp_path):
    for n, (keys, words) in enumerate(
        [
            (
                ["stop.number=zero_shot/samples"],
                "stop.number=zero_shot/samples: zero_shot does not",
            ),
            (["data.val_shards="], "stop.number=zero_shot/top1 needs validation samples"),
        ]
    ):
        shards = ["data.shards=" + smoke().data.shards] if n else []
        done = train(tmp_path / str(n), *ON, *keys, *shards, code=2)
        assert words in done.stderr, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_it_ends_behind_the_evaluation_that_was_one_too_many(tmp_path, world):
    """Saved, evaluators of the end included, in the ledger once; the same command does nothing."""
    run = smoke(*STILL, f"system.strategy={'ddp' if world > 1 else 'single'}")
    run = replace(run, evaluate=(*run.evaluate, Evaluation(name="retrieval")))
    for _ in range(2):
        assert run_on_ranks(run, tmp_path, world) == [0] * world, log_of(tmp_path)
        rows = lines(tmp_path / "evaluations.jsonl")
        assert [(r["step"], r["name"]) for r in rows] == [
            *((step, "zero_shot") for step in (2, 4, 6)),
            (6, "retrieval"),
        ]
        assert len(losses(tmp_path)) == 6 and steps(checkpoints_of(tmp_path)) == [4, 6]
        told = [r for r in lines(tmp_path / "ledger.jsonl") if r["kind"] == "stopped"]
        assert [(r["step"], r["number"]) for r in told] == [(6, "zero_shot/top1")]
    log = log_of(tmp_path)
    assert "since step 2, and 2 evaluations were no better" in log
    assert "finished at step 6" in log and log.count("finished already: zero_shot/top1") == 1
    assert "✔ finished" in vtx("watch", tmp_path, "--once").stdout


@pytest.fixture
def evaluator(tmp_path):
    """One whose number is a zigzag of the model's own: no two evaluations are alike."""
    (tmp_path / "zigzag.py").write_text(
        textwrap.dedent(
            '''
            """An evaluator."""

            import numpy as np

            LOWER = ("wave",)


            def zigzag(probes, batches, classes, ranks):
                for _ in batches:
                    pass
                pictures = np.zeros((2, 32, 32, 3), np.uint8)
                total = float(np.abs(np.asarray(probes["encode_image"](pictures))).sum())
                return {"wave": total * 1e4 % 1}
            '''
        )
    )
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("world", [pytest.param(1, marks=pytest.mark.full), 2])
def test_a_run_that_was_killed_stops_where_an_undisturbed_one_does(evaluator, world, monkeypatch):
    """Killed before an evaluation, behind one that no checkpoint knows, and left on the way."""
    monkeypatch.setenv("PYTHONPATH", str(evaluator))
    keys = (
        "steps=40",
        "evaluate.0.name=zigzag:zigzag",
        "evaluate.0.every=1",
        "stop.number=zigzag:zigzag/wave",
        "stop.patience=5",
        "checkpoint.every=3",
        f"system.world={world}",
    )
    whole, broken = evaluator / "whole", evaluator / "broken"
    train(whole, *keys)
    ended = len(losses(whole))
    assert 6 <= ended < 40, "it says nothing of a stop"
    last = world - 1
    kills = f"evaluate-3:{last},step-5:{last},data-{ended}:{last}"
    env = {"VTX_KILL": kills, "VTX_KILL_ONCE": str(evaluator)}
    for _ in range(6):
        done = vtx(
            *("train", "clip_vit_b32", "--smoke", "--run", broken, "system.workers=0", *keys),
            f"system.leave_after={ended - 2}",
            env=env,
        )
        if done.returncode == 0:
            break
    assert done.returncode == 0, done.stderr
    assert len([f for f in evaluator.iterdir() if f.name.startswith(("evaluate", "step", "data"))])
    wanted = lines(whole / "evaluations.jsonl")
    assert lines(broken / "evaluations.jsonl") == wanted and losses(broken) == losses(whole)
    assert_same_bits(broken, whole)
    told = [
        [r for r in lines(f / "ledger.jsonl") if r["kind"] == "stopped"] for f in (whole, broken)
    ]
    assert len(told[0]) == len(told[1]) == 1
    assert told[0][0]["reason"] == told[1][0]["reason"]
