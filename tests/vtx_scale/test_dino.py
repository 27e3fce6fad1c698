"""DINO's schedules, its frozen layer, and what a step moves."""

import math
from dataclasses import replace

import pytest
import torch

from tests.runs import lines, tensors, train_on_ranks
from vtx_scale.launch import recipes
from vtx_scale.launch.build import build_objective
from vtx_scale.strategies.single import Single
from vtx_scale.trainer.init import keyed_flat


def objective(**changes):
    run = recipes.find("dino_vit_s16", smoke=True)
    return build_objective(
        replace(run, steps=100, objective=replace(run.objective, **changes)), torch.float32
    )


def test_schedules():
    dino = objective(
        momentum=0.9, warm_temperature=0.04, teacher_temperature=0.07, warm_steps=30, frozen=3
    )
    assert [dino.momentum(s) for s in (0, 50, 100)] == pytest.approx([0.9, 0.95, 1.0])
    assert dino.momentum(25) == pytest.approx(1 - 0.1 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert [dino.temperature(s) for s in (0, 15, 30, 99)] == pytest.approx(
        [0.04, 0.055, 0.07, 0.07]
    )
    strategy = Single(torch.device("cpu"))
    strategy.prepare(dino)
    assert [len(strategy.frozen(s)) for s in (0, 2, 3)] == [2, 2, 0], "prototypes and their gains"
    spec = recipes.find("dino_vit_s16")
    assert [spec.optim.decay_at(s, spec.steps) for s in (0, spec.steps)] == pytest.approx(
        [0.04, 0.4]
    )


@pytest.mark.slow
def test_without_local_crops(tmp_path):
    """DINO without multi-crop: two global crops, each of which sees the other's target."""
    train_on_ranks(
        tmp_path / "run", 2, "ddp", "steps=2", "objective.crops.locals=0", recipe="dino_vit_s16"
    )
    assert [r["step"] for r in lines(tmp_path / "run" / "metrics.jsonl")] == [1, 2]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Checkpoints after each of five steps; the last layer is frozen for two."""
    folder = tmp_path_factory.mktemp("dino") / "run"
    saved = []
    for _ in range(5):
        train_on_ranks(
            folder,
            1,
            "single",
            "steps=5",
            "system.leave_after=1",
            "schedule.warmup=0",
            recipe="dino_vit_s16",
            code=75 if len(saved) < 4 else 0,
        )
        saved.append(tensors(folder))
    return folder, saved


@pytest.mark.slow
def test_the_last_layer_rests_and_then_moves(run):
    _, saved = run
    start = keyed_flat("student.head.prototypes", 0, 96 * 32, ("uniform", 32**-0.5), 0).view(96, 32)
    name = "param/student.head.prototypes"
    assert torch.equal(saved[0][name], start) and torch.equal(saved[1][name], start)
    assert not saved[1]["exp_avg/student.head.prototypes"].any()
    assert not torch.equal(saved[2][name], start)
    assert not torch.equal(
        saved[0]["param/student.head.fc3.weight"], saved[1]["param/student.head.fc3.weight"]
    )


@pytest.mark.slow
def test_five_starts_leave_no_trace(run, tmp_path):
    """Adam's correction of the last layer counts the steps that it was moved at, from the start
    behind which it was let go.
    """
    _, saved = run
    keys = ("steps=5", "schedule.warmup=0")
    train_on_ranks(tmp_path / "run", 1, "single", *keys, recipe="dino_vit_s16")
    whole = tensors(tmp_path / "run")
    assert {k for k in whole if not torch.equal(whole[k], saved[-1][k])} == set()


@pytest.mark.slow
def test_centre_and_teacher_move_with_each_step(run):
    folder, saved = run
    name = "param/student.net.blocks.0.mlp.fc1.weight"
    for step, (before, after) in enumerate(zip(saved, saved[1:], strict=False), start=1):
        keep = 1 - 0.004 * 0.5 * (1 + math.cos(math.pi * step / 5))
        teacher = name.replace("student", "teacher")
        assert torch.allclose(
            after[teacher], keep * before[teacher] + (1 - keep) * after[name], atol=1e-7
        )
        assert not torch.equal(before["buffer/centre"], after["buffer/centre"])
    rows = lines(folder / "metrics.jsonl")
    assert all(
        0 < r["teacher_entropy"] <= r["marginal_entropy"] + 1e-6 <= math.log(96) + 1e-5
        for r in rows
    )
