"""P4, nothing lost in silence: a fault is a sentence or a ledger line, never a hang,
a traceback or a quiet loss.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from tests.promises.shards import faulty
from tests.runs import (
    COLOUR,
    assert_same_bits,
    environment,
    lines,
    losses,
    tensors,
    train,
    train_on_ranks,
    vtx,
)
from tests.survivors import assert_none_survives

SMOKE = ("train", "clip_vit_b32", "--smoke", "system.workers=0", "--run")


def refused(*arguments, cwd=None):
    """The one sentence of a refusal with exit code 2."""
    done = vtx(*arguments, timeout=60, cwd=cwd)
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    sentences = [line for line in done.stderr.splitlines() if line.startswith("vtx: ")]
    assert len(sentences) == 1 and done.stderr.splitlines()[-1] == sentences[0], done.stderr
    return sentences[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "clip_vit_b23"], "did you mean clip_vit_b32"),
        (["train", "clip_vit_b32"], "data.shards="),
        (["train", "clip_vit_b32", "--smoke", "system.wolrd=2"], "nearest: world"),
        (["train", "clip_vit_b32", "--smoke", "steps=1.5"], "'1.5' is not int"),
        (["train", "clip_vit_b32", "--smoke", "optim.lr=nan"], "not a finite number"),
        (
            ["train", "clip_vit_b32", "--smoke", "system.strategy=fspd"],
            "none of auto, single, ddp, fsdp, hsdp, tp, zero1, zero2, zero3, fairscale",
        ),
        (["train", "clip_vit_b32", "--smoke", "global_batch=0"], "above 0"),
        (["train", "clip_vit_b32", "--smoke", "steps"], "not key=value"),
        (["train", "clip_vit_b32", "--smoke", "objective=x"], "whole part of the recipe"),
        (
            ["train", "clip_vit_b32", "--smoke", "evaluate.3.every=1"],
            "evaluate.0 to evaluate.0",
        ),
        (["train", "missing.py:recipe"], "does not exist"),
        (["train", "clip_vit_b32", "--smoke", "data.shards=/no/such/folder"], "does not exist"),
        (["train", "clip_vit_b32", "--smoke", "data.shards=pipe:cat x.tar"], "never opened"),
        (["train", "clip_vit_b32", "--smoke", "data.shards=."], "holds no *.tar"),
        (["train", "clip_vit_b32", "--smoke", "data.tokenizer=nothing.json"], "data.tokenizer"),
        (["train", "clip_vit_b32", "--smoke", "init.from=nowhere"], "init.from"),
        (
            ["train", "clip_vit_b32", "--smoke", "system.world=3", "system.strategy=hsdp"],
            "system.replicas",
        ),
        (
            ["train", "clip_vit_b32", "--smoke", "system.world=2", "system.strategy=single"],
            "single runs on one process",
        ),
        (["evaluate", "."], "no run folder"),
        (["export", ".", "--to", "safetensors", "out"], "no run folder"),
        (["checkpoints", "nowhere"], "no run folder"),
        (["data", "order", "clip_vit_b32", "--smoke", "--world", "0"], "--world 0"),
        (["data", "verify", "/no/such/shards"], "does not exist"),
        (["nonsense"], "--help"),
        (["train"], "--help"),
        ([], "--help"),
    ],
)
def test_wrong_input_is_one_sentence(tmp_path, arguments, words):
    assert words in refused(*arguments, cwd=tmp_path)
    left = [p.name for p in tmp_path.rglob("*") if p.is_file() and "lease" not in p.parts]
    assert "metrics.jsonl" not in left and not any(n.endswith(".safetensors") for n in left)


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    return faulty(tmp_path_factory.mktemp("broken"))


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_bad_samples_are_masked_and_named(broken, tmp_path, world):
    """Two epochs over shards with faults: each bad sample stands in the ledger once an epoch,
    all others are seen.
    """
    shards, reasons = broken
    total, batch = 64 + 10 + 2, 19
    steps = 2 * total // batch
    train_on_ranks(
        tmp_path / "run",
        world,
        "ddp",
        f"data.shards={shards}",
        "data.val_shards=",
        f"global_batch={batch}",
        f"steps={steps}",
        "data.bad_limit=1",
    )
    entries = [e for e in lines(tmp_path / "run" / "ledger.jsonl") if e["kind"] == "sample"]
    assert Counter((f"{e['shard']}/{e['key']}", e["reason"]) for e in entries) == Counter(
        {(i, r): 2 for i, r in reasons.items()}
    )
    rows = lines(tmp_path / "run" / "metrics.jsonl")
    assert rows[-1]["samples"] == steps * batch - len(entries)
    notes = [e for e in lines(tmp_path / "run" / "ledger.jsonl") if e["kind"] == "note"]
    # let pass, and counted
    assert [(e["reason"], e["count"]) for e in notes] == [("text_replaced", 1)] * 2
    assert all(1 <= e["step"] <= steps and e["epoch"] in (0, 1) for e in entries)
    assert len(losses(tmp_path / "run")) == steps


def test_verify_names_the_bad_and_no_other(broken):
    shards, reasons = broken
    done = vtx("data", "verify", shards, "--json")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    samples = {f"{r['shard']}/{r['key']}": r["reason"] for r in found if r["key"]}
    assert samples == reasons
    assert {(r["shard"], r["reason"]) for r in found if not r["key"]} <= {("empty.tar", "tar_tail")}
    assert done.returncode == 1


@pytest.mark.slow
def test_too_many_bad_samples_stop_the_run(broken, tmp_path):
    shards, _ = broken
    done = train(
        tmp_path / "run",
        f"data.shards={shards}",
        "data.val_shards=",
        "data.bad_limit=0.0001",
        "steps=30",
        code=2,
    )
    assert "were bad, more than data.bad_limit" in done.stderr


@pytest.mark.slow
def test_another_recipe_in_the_folder(tmp_path):
    folder = tmp_path / "run"
    train_on_ranks(folder, 1, "single", "system.leave_after=3", code=75)
    sentence = refused(*SMOKE, folder, "optim.lr=0.5", "seed=7")
    assert (
        "optim.lr was 0.001, is 0.5" in sentence
        and "seed was 0, is 7" in sentence
        and "--fork" in sentence
    )
    sentence = refused(
        *SMOKE, folder, f"data.shards={os.environ['XDG_CACHE_HOME']}/vtx-scale/toy-v1/val"
    )
    assert "the data set was" in sentence
    done = train(folder, "optim.lr=0.0001", "--fork")
    assert "resumed at step 3" in done.stderr
    assert [e["kind"] for e in lines(folder / "ledger.jsonl")] == ["fork"]
    assert len(losses(folder)) == 12


@pytest.mark.slow
def test_another_system_is_the_same_run(tmp_path):
    folder = tmp_path / "run"
    train_on_ranks(folder, 1, "single", "system.leave_after=3", code=75)
    assert "resumed at step 3" in train(folder, "system.world=2", "checkpoint.every=2").stderr


def start(*arguments, env=None):
    return subprocess.Popen(
        [sys.executable, "-m", "vtx_scale.launch.cli", *map(str, arguments)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(env),
        start_new_session=True,
    )


def wait_for_step(folder, step, process):
    until = time.monotonic() + 90
    while time.monotonic() < until:
        file = folder / "metrics.jsonl"
        if file.exists() and file.read_bytes().count(b"\n") >= step:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError("no step came")


@pytest.mark.parametrize(
    ("code", "says"),
    [(-signal.SIGTERM, 75), (1, 1), (-signal.SIGKILL, 1), (0, 0), (75, 75), (3, 3)],
)
def test_a_failure_on_the_way_out_is_no_75(tmp_path, monkeypatch, code, says):
    """75 promises that all is saved: a rank that failed while it was asked to leave
    says so still.
    """
    from vtx_scale.launch import local

    def once(*arguments):
        local.requests.asked = True
        return code

    monkeypatch.setattr(local, "once", once)
    (tmp_path / "request").write_text("{}")
    assert local.launch(tmp_path / "request", tmp_path, 2, print) == says


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "after"), [(1, 1.5), (1, 2.5), (1, 3.5), (2, 2.0), (2, 3.0), (2, 4.0)]
)
def test_ctrl_c_while_it_starts(tmp_path, world, after):
    """Whatever is being imported: a documented code, no traceback, nobody left,
    and the command can be run again.
    """
    folder = tmp_path / "run"
    process = start(
        "train", COLOUR, "--run", folder, "system.workers=1", "steps=4000", f"system.world={world}"
    )
    time.sleep(after)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode in (75, 130), (process.returncode, out, err)
    assert "Traceback" not in err and "Error" not in err, err
    assert_none_survives(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "ask"),
    [
        (1, "stop file"),
        (1, "term"),
        pytest.param(2, "term", marks=pytest.mark.full),
        pytest.param(2, "ctrl-c", marks=pytest.mark.full),
    ],
)
def test_asked_to_leave(tmp_path, world, ask):
    """Saved, exit 75, nobody left; the same command finishes the run. Every signal in every place
    is tests/promises/test_p4_signals.py.
    """
    folder = tmp_path / "run"
    arguments = (
        "train",
        COLOUR,
        "--run",
        folder,
        "system.workers=1",
        "steps=400",
        f"system.world={world}",
    )
    process = start(*arguments)
    wait_for_step(folder, 5, process)
    if ask == "term":
        process.send_signal(signal.SIGTERM)
    elif ask == "ctrl-c":
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    else:
        (folder / "control").mkdir(exist_ok=True)
        (folder / "control" / "stop").touch()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, (process.returncode, out, err)
    assert "Traceback" not in err and "left at step" in err
    reached = len(losses(folder))
    assert 5 <= reached < 400
    assert (folder / "checkpoints" / f"step-{reached:08d}" / "manifest.json").exists()
    assert_none_survives(folder)
    done = vtx(*arguments)
    assert done.returncode == 0 and f"resumed at step {reached} of 400" in done.stderr
    assert len(losses(folder)) == 400


@pytest.mark.slow
def test_two_writers_are_refused(tmp_path):
    folder = tmp_path / "run"
    process = start("train", COLOUR, "--run", folder, "steps=100000")
    try:
        wait_for_step(folder, 3, process)
        again = refused("train", COLOUR, "--run", folder, "steps=100000")
        assert "is being written by process" in again
    finally:
        process.kill()
        process.communicate()
    assert_none_survives(folder)


@pytest.mark.slow
def test_nobody_outlives_a_killed_launcher(tmp_path):
    folder = tmp_path / "run"
    process = start(
        "train", COLOUR, "--run", folder, "steps=100000", "system.world=2", "system.workers=1"
    )
    wait_for_step(folder, 3, process)
    process.kill()
    process.communicate()
    assert_none_survives(folder)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk is mounted by root alone")
def test_full_disk_while_saving(tmp_path):
    """The first checkpoint fits, the next do not: each failure is said, the training goes on,
    the first stays.
    """
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2600k", "tmpfs", disk], check=True)
    try:
        folder = disk / "run"
        done = train(folder, "checkpoint.every=4", "system.world=2", "system.strategy=fsdp", code=1)
        assert "saving step 8 failed" in done.stderr and "No space left" in done.stderr, done.stderr
        assert "make room or mend the path, and run the same command again" in done.stderr
        assert len(losses(folder)) == 12
        assert {
            e["step"] for e in lines(folder / "ledger.jsonl") if e["kind"] == "save_failed"
        } == {8, 12}
        assert [p.name for p in (folder / "checkpoints").iterdir()] == ["step-00000004"]
        subprocess.run(["mount", "-o", "remount,size=50m", disk], check=True)
        again = train(folder, "checkpoint.every=4", "system.world=2", "system.strategy=fsdp")
        assert "resumed at step 4" in again.stderr
        train_on_ranks(tmp_path / "other", 2, "fsdp")
        assert losses(folder) == losses(tmp_path / "other")
        assert_same_bits(folder, tmp_path / "other")
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


POISON = """
import os
from dataclasses import dataclass
from typing import ClassVar

import torch

import average_colour
from average_colour import ColourObjective, average_colour_smoke
from dataclasses import replace


@dataclass(frozen=True, kw_only=True)
class Poison(average_colour.Colour):
    build: ClassVar[str] = "poison:PoisonObjective"
    steps: tuple[int, ...] = (4,)


class PoisonObjective(ColourObjective):
    def forward(self, batch, step=0):
        loss, seen = super().forward(batch, step)
        ranks = self.context.ranks
        bad = step in self.spec.steps and ranks.rank == ranks.world - 1
        return loss * (float("nan") if bad else 1.0), seen


def once_smoke():
    return replace(average_colour_smoke(), objective=Poison(), evaluate=())


def always_smoke():
    return replace(once_smoke(), objective=Poison(steps=tuple(range(100))), steps=40)
"""


@pytest.fixture
def poison(tmp_path):
    folder = tmp_path / "recipes"
    folder.mkdir()
    source = COLOUR.partition(":")[0]
    (folder / "average_colour.py").write_text(open(source).read())
    (folder / "poison.py").write_text(POISON)
    return folder / "poison.py"


@pytest.mark.slow
@pytest.mark.parametrize(("world", "strategy"), [(1, "single"), (2, "ddp"), (2, "fsdp")])
def test_a_step_that_is_not_finite_is_skipped_by_all(poison, tmp_path, world, strategy):
    """One rank's loss is NaN once: every rank skips, the ledger names that rank's samples.

    That nothing moves is seen in test_p2_skips.py.
    """
    folder = tmp_path / "run"
    done = train(
        folder, f"system.world={world}", f"system.strategy={strategy}", recipe=f"{poison}:once"
    )
    assert "step 5 is not finite" in done.stderr
    entries = [e for e in lines(folder / "ledger.jsonl") if e["kind"] == "skip"]
    assert [(e["step"], e["rank"], e["reason"]) for e in entries] == [(5, world - 1, "loss")]
    assert len(entries[0]["samples"]) == 16 // world
    assert len(losses(folder)) == 12 and all(
        abs(x) < 100 for i, x in enumerate(losses(folder)) if i != 4
    )
    assert all(t.isfinite().all() for t in tensors(folder).values())


@pytest.mark.slow
def test_a_run_that_never_is_finite_stops(poison, tmp_path):
    done = train(tmp_path / "run", recipe=f"{poison}:always", code=3)
    assert "lower optim.lr" in done.stderr
