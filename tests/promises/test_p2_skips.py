"""P2 around a step that did not count: it moves nothing, and a run that leaves behind it goes on as
if it had stayed. And what each step that counts is taken at.
"""

import json
from pathlib import Path

import pytest
import torch

from tests.ranks import on_ranks
from tests.runs import COLOUR, assert_same_bits, lines, losses, smoke
from tests.skips import saved, skips, train_poisoned
from vtx_scale.launch import override, parts, recipes, worker
from vtx_scale.launch.prepare import prepare_folder, refuse
from vtx_scale.trainer.precision import Precision

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("world", "strategy"), [(1, "single"), (2, "ddp"), (2, "fsdp")])
def test_a_skipped_step_moves_nothing(tmp_path, world, strategy):
    """Weights, moments and the follower are to the bit what they were; a step that counts moves all
    of them.
    """
    folder = tmp_path / "run"
    train_poisoned(folder, world, strategy, [5], "steps=6", "checkpoint.every=1")
    before, skipped, after = (saved(folder, step) for step in (4, 5, 6))
    assert [m["applied"] for _, m in (before, skipped, after)] == [4, 4, 5]
    assert {k for k in before[0] if not torch.equal(before[0][k], skipped[0][k])} == set()
    assert {k for k in before[0] if torch.equal(skipped[0][k], after[0][k])} == set()
    assert any(k.startswith("param/teacher.") for k in before[0]), "no follower was looked at"


def test_a_run_that_leaves_behind_a_skip_goes_on_as_if_it_had_stayed(tmp_path):
    """Adam's correction counts the steps that were applied, float16's scale and its count of sound
    steps are those of before, and what a dead start wrote beyond is gone.
    """
    keys = ("system.precision=fp16", "system.skip_limit=20")
    poison = [2, 5]
    train_poisoned(tmp_path / "stayed", 1, "single", poison, *keys)
    folder = tmp_path / "left"
    train_poisoned(folder, 1, "single", poison, *keys, "system.leave_after=8", code=75)
    middle = saved(folder, 8)[1]
    assert middle["applied"] < 7 and middle["good"] > 0 and middle["scale"] < 2.0**16, (
        "nothing was carried that a new start would not have had"
    )
    for name in ("ledger.jsonl", "metrics.jsonl", "evaluations.jsonl"):
        with (folder / name).open("a") as f:  # of a start that was killed at step 10
            f.write(json.dumps({"kind": "skip", "step": 10, "loss": 0}) + "\n")
    train_poisoned(folder, 1, "single", poison, *keys)
    assert_same_bits(folder, tmp_path / "stayed")
    ends = [saved(f, 12)[1] for f in (folder, tmp_path / "stayed")]
    names = ("applied", "samples", "scale", "good", "data")
    assert [ends[0][n] for n in names] == [ends[1][n] for n in names]
    assert list(map(str, losses(folder))) == list(map(str, losses(tmp_path / "stayed")))
    assert skips(folder) == skips(tmp_path / "stayed") and {2, 5} <= set(skips(folder))
    assert [r["step"] for r in lines(folder / "evaluations.jsonl")] == [12]


@pytest.mark.parametrize(("poison", "code"), [([2, 4, 6], 0), ([2, 4, 5], 3)])
def test_skips_in_a_row_alone_end_a_run(tmp_path, poison, code):
    """One that counts between two sets the count back."""
    folder = tmp_path / "run"
    train_poisoned(folder, 1, "single", poison, "steps=8", "system.skip_limit=1", code=code)
    assert skips(folder) == poison


@pytest.mark.parametrize("steps", [1, 3])
def test_a_run_of_which_no_step_counted_is_not_finished(tmp_path, steps):
    """Also where it is too short for the limit of skipped steps in a row."""
    poison = list(range(1, steps + 1))
    train_poisoned(tmp_path / "run", 1, "single", poison, f"steps={steps}", code=3)
    assert skips(tmp_path / "run") == poison


def scaled(recipe: dict, folder: Path, paths: list[str], grow: int) -> list[float]:
    """The worker on a rank in float16, whose scale grows behind every `grow` sound steps: the norm
    of each gradient as the optimizer takes it.
    """
    recipes.let_import(paths)
    found, plain = [], torch.optim.AdamW.step

    def step(self, *arguments):
        found.extend(p.grad.norm().item() for g in self.param_groups for p in g["params"])
        return plain(self, *arguments)

    torch.optim.AdamW.step = step
    Precision.GROW = grow
    half = Precision(torch.float32, torch.float16, scale=2.0**6)
    parts.precision_of = lambda system, device: half
    worker.work(override.from_dict(recipe), folder)
    return found


def test_a_scale_that_grows_changes_no_step(tmp_path):
    """Powers of two: what a step takes is the same at any scale, but for what float16 rounds."""
    found = []
    for grow in (2, 10_000):
        folder = tmp_path / str(grow)
        run = smoke("system.precision=fp16", "steps=5", "optim.clip=0.5", recipe=COLOUR)
        prepare_folder(run, folder, refuse(run, folder, 1))
        arguments = (override.to_dict(run), folder, recipes.STRANGERS, grow)
        found.append(on_ranks(1, scaled, *arguments)[0])
        assert not skips(folder)
    assert found[0] == pytest.approx(found[1], rel=0.02, abs=1e-5) and len(found[0]) > 5


def rates(recipe: dict, folder: Path, paths: list[str]) -> list[tuple[float, float]]:
    """The worker on a rank: rate and decay of the body's matrices at each step that was taken."""
    from torch.optim import AdamW

    recipes.let_import(paths)
    found, plain = [], AdamW.step

    def step(self, *arguments):
        found.extend((g["lr"], g["weight_decay"]) for g in self.param_groups if g["kind"] == "body")
        return plain(self, *arguments)

    AdamW.step = step
    worker.work(override.from_dict(recipe), folder)
    return found


def test_a_step_is_taken_at_its_own_rate_and_decay(tmp_path):
    """The first at step 0's, the last at step N - 1's, also after a resume."""
    keys = ("optim.decay=0.1", "optim.decay_end=0.4", "schedule.warmup=3", "steps=9")
    found = []
    for more in (("system.leave_after=4",), ()):
        run = smoke(*keys, *more, recipe=COLOUR)
        prepare_folder(run, tmp_path, refuse(run, tmp_path, 1))
        arguments = (override.to_dict(run), tmp_path, recipes.STRANGERS)
        found += on_ranks(1, rates, *arguments)[0]
    optim, schedule = run.optim, run.schedule
    wanted = [(optim.lr * schedule(t, 9), optim.decay_at(t, 9)) for t in range(9)]
    assert found == wanted and len(set(wanted)) == 9
