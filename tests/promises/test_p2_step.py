"""P2, what a step does: how far it goes, which number it bears, and that ranks do it together."""

import itertools
import os
import time
from pathlib import Path

import pytest
import torch

from tests import slow
from tests.ranks import on_ranks
from tests.runs import COLOUR, lines, losses, norms, smoke, train_on_ranks
from tests.skips import saved
from vtx_scale.blocks.rules import Rule, zeros
from vtx_scale.launch import fit, override, recipes, worker
from vtx_scale.launch.prepare import prepare_folder, refuse
from vtx_scale.trainer.control import Control

pytestmark = pytest.mark.slow


def on(world, folder, function, *keys, recipe=COLOUR):
    """What `function(run, folder)` gives on each rank of a run."""
    slow.must_be_marked()
    run = smoke(*keys, recipe=recipe)
    prepare_folder(run, folder, refuse(run, folder, world))
    arguments = (override.to_dict(run), folder, recipes.STRANGERS)
    return on_ranks(world, called, function, *arguments)


def called(function, recipe: dict, folder: Path, paths: list[str]):
    recipes.let_import(paths)
    return function(override.from_dict(recipe), folder)


def distances(before, after):
    """How far each trained tensor moved, float64."""
    names = [k for k in before if k.startswith("param/student.")]
    return {k: (after[k].double() - before[k].double()).norm() for k in names}


PLAIN = ("optim.kind=sgd", "optim.betas=0,0", "optim.lr=0.002", "schedule.kind=constant")


def test_a_step_goes_as_far_as_its_norm_and_no_farther_than_the_limit(tmp_path):
    """Plain SGD: the rate times the gradient's norm, where that is not above `clip`."""
    clip = 12.0
    keys = (*PLAIN, f"optim.clip={clip}", "checkpoint.every=1", "checkpoint.keep=20")
    train_on_ranks(tmp_path / "run", 1, "single", *keys, recipe=COLOUR)
    states = [saved(tmp_path / "run", step)[0] for step in range(1, 13)]
    found = norms(tmp_path / "run")[1:]
    assert min(found) < 0.9 * clip and max(found) > 1.1 * clip, "one side alone was looked at"
    moved = [
        torch.stack([*distances(a, b).values()]).norm().item()
        for a, b in zip(states, states[1:], strict=False)
    ]
    assert moved == pytest.approx([0.002 * min(clip, n) for n in found], rel=1e-4)


def test_each_tensor_is_held_to_the_limit_by_its_own_norm(tmp_path):
    """`clip_each`: tensors whose gradients are small move as without a limit."""
    clip, keys, states = 6.0, (*PLAIN, "steps=1", "optim.clip_each=true"), {}
    for limit in ("1e-9", "none", str(clip)):  # of the first hardly anything moves
        train_on_ranks(tmp_path / limit, 1, "single", *keys, f"optim.clip={limit}", recipe=COLOUR)
        states[limit] = saved(tmp_path / limit, 1)[0]
    free, held = (distances(states["1e-9"], states[limit]) for limit in ("none", str(clip)))
    found = {k: d.item() / 0.002 for k, d in free.items()}
    assert min(found.values()) < 0.9 * clip and max(found.values()) > 1.1 * clip, found
    wanted = {k: 0.002 * min(clip, n) for k, n in found.items()}
    assert {k: d.item() for k, d in held.items()} == pytest.approx(wanted, rel=1e-4)


def leaves_at(run, folder):
    """The worker; in its third step the second rank alone is asked, and by no signal, as where a
    launcher of others' hears them.
    """
    heard = itertools.count(1)
    Control.wants_to_leave = lambda self: next(heard) == 3 and os.environ["RANK"] == "1"
    return worker.work(run, folder)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_all_leave_where_one_is_asked_to(tmp_path, strategy):
    folder = tmp_path / "run"
    assert on(2, folder, leaves_at, f"system.strategy={strategy}", "steps=40") == [75, 75]
    reached = len(losses(folder))
    assert reached == 3 and saved(folder, reached)[1]["step"] == reached  # behind that very step


def told(run, folder):
    """The worker; by name of what it calls, the steps that it says: of one that was not finite
    followers and buffers hear nothing.
    """
    from average_colour import ColourObjective

    heard = {name: [] for name in ("prepare", "forward", "momentum", "update_buffers")}

    class Listening(ColourObjective):
        def prepare(self, batch, step):
            if not self.estimated():
                heard["prepare"].append(step)
            return super().prepare(batch, step)

        def forward(self, batch, step=0):
            if len(batch) == 16 and not self.estimated():  # what a step costs is counted on two
                heard["forward"].append(step)
            loss, seen = super().forward(batch, step)
            return loss * (float("nan") if step == 5 else 1.0), seen

        def estimated(self):  # the memory, on the meta device
            return next(self.parameters()).is_meta

        def followers(self):
            (follower,) = super().followers()
            return [type(follower)(follower.teacher, follower.student, self.momentum)]

        def momentum(self, step):
            heard["momentum"].append(step)
            return 0.9

        def update_buffers(self, step):
            heard["update_buffers"].append(step)
            return super().update_buffers(step)

    import average_colour

    average_colour.ColourObjective = Listening
    worker.work(run, folder)
    return heard


def test_all_that_a_step_calls_is_told_its_number(tmp_path):
    """Counted from 0, also behind a skip and a resume: what is drawn hangs on it."""
    parts = [
        on(1, tmp_path / "run", told, "steps=9", *more)[0]
        for more in (("system.leave_after=7",), ())
    ]
    heard = {name: parts[0][name] + parts[1][name] for name in parts[0]}
    steps = list(range(9))
    counted = [step for step in steps if step != 5]
    assert heard == {
        "prepare": steps,
        "forward": steps,
        "momentum": counted,
        "update_buffers": counted,
    }


def fails_once(run, folder):
    """The worker; the second rank cannot write its part of the first save."""
    from vtx_scale.checkpoints import write

    plain, calls = write.save_file, []

    def save_file(tensors, path, *arguments, **more):
        calls.append(path)
        if os.environ["RANK"] == "1" and len(calls) == 1:
            raise OSError(28, "No space left on device")
        return plain(tensors, path, *arguments, **more)

    write.save_file = save_file
    return worker.work(run, folder)


def test_a_part_that_one_rank_cannot_write_costs_that_save_alone(tmp_path):
    """Named once; the next saves are whole, and nothing of the failed one is left."""
    folder = tmp_path / "run"
    assert on(2, folder, fails_once, "system.strategy=ddp") == [0, 0]
    failed = [r for r in lines(folder / "ledger.jsonl") if r["kind"] == "save_failed"]
    assert [(r["step"], r["rank"]) for r in failed] == [(4, 1)] and "No space" in failed[0][
        "reason"
    ]
    assert len(losses(folder)) == 12
    left = sorted(p.name for p in (folder / "checkpoints").iterdir())
    assert left == ["step-00000008", "step-00000012"]
    assert [saved(folder, step)[1]["step"] for step in (8, 12)] == [8, 12]


def hangs_once(run, folder):
    """The worker; what the second rank writes of the first save does not return."""
    from vtx_scale.checkpoints import write

    plain, calls = write.save_file, []

    def save_file(tensors, path):
        calls.append(path)
        if os.environ["RANK"] == "1" and len(calls) == 1:
            time.sleep(60)
        return plain(tensors, path)

    class Impatient(write.Writer):
        def __init__(self, *arguments, patience, **more):
            super().__init__(*arguments, patience=1.0, **more)

    write.save_file, fit.Writer = save_file, Impatient
    return worker.work(run, folder)


def test_a_save_that_hangs_costs_that_save_alone(tmp_path):
    """A dead file system: named when its time is over, and the training goes on meanwhile."""
    folder = tmp_path / "run"
    began = time.monotonic()
    assert on(2, folder, hangs_once, "system.strategy=ddp") == [0, 0]
    assert time.monotonic() - began < 50
    failed = [r for r in lines(folder / "ledger.jsonl") if r["kind"] == "save_failed"]
    assert failed and {r["step"] for r in failed} == {4}
    assert any("takes longer than 1 s" in r["reason"] for r in failed), failed
    assert len(losses(folder)) == 12
    left = sorted(p.name for p in (folder / "checkpoints").iterdir())
    assert left[-2:] == ["step-00000008", "step-00000012"]
    assert [saved(folder, step)[1]["step"] for step in (8, 12)] == [8, 12]


def test_padding_is_no_bad_sample(tmp_path):
    """A world that does not divide the batch pads it at every step: no limit is near."""
    keys = ("data.bad_limit=0.0001", "global_batch=16")
    train_on_ranks(tmp_path / "run", 3, "ddp", *keys, recipe=COLOUR)
    assert not (tmp_path / "run" / "ledger.jsonl").exists()
    rows = lines(tmp_path / "run" / "metrics.jsonl")
    assert [r["samples"] for r in rows] == [16 * r["step"] for r in rows]


def limited(run, folder):
    """The worker; a bias has limits that it would leave at the first step."""
    from average_colour import ColourObjective

    rule = Rule(r"student\.last\.bias", zeros, limits=(-2e-3, 1e-3))
    ColourObjective.parameter_rules = (rule, *ColourObjective.parameter_rules)
    return worker.work(run, folder)


@pytest.mark.parametrize(("world", "strategy"), [(1, "single"), (2, "fsdp")])
def test_limits_hold_after_each_step(tmp_path, world, strategy):
    keys = (f"system.strategy={strategy}", "checkpoint.every=1", "steps=4", "checkpoint.keep=4")
    assert on(world, tmp_path / "run", limited, *keys) == [0] * world
    low, high = torch.tensor([-2e-3, 1e-3])
    for step in (1, 2, 3, 4):
        bias = saved(tmp_path / "run", step)[0]["param/student.last.bias"]
        assert (bias >= low).all() and (bias <= high).all(), step
        assert step > 1 or ((bias == low) | (bias == high)).all(), "no limit was met"
