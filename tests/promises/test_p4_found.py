"""P4: what else a run folder meets while it is trained in, and what a start finds in it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.promises.test_p4_watchers import events
from tests.runs import environment, lines, losses, train_on_ranks, vtx
from vtx_scale.trainer.events import Events
from vtx_scale.trainer.lines import truncate_after

KEYS = ("steps=6", "checkpoint.every=2", "data.val_shards=")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    train_on_ranks(folder, 1, "single", *KEYS)
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def started(folder: Path, *keys: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "vtx_scale.launch.cli", "train", "clip_vit_b32", "--smoke"]
    run = [*command, "--run", str(folder), "system.workers=0", "data.val_shards=", *keys]
    process = subprocess.Popen(run, env=environment(), stderr=subprocess.PIPE, text=True)
    file, until = folder / "metrics.jsonl", time.monotonic() + 60
    while not file.exists() or file.read_bytes().count(b"\n") < 5:
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.01)
    return process


@pytest.mark.slow
@pytest.mark.parametrize("what", ["gone", "empty"])
def test_a_run_goes_on_without_its_run_json(tmp_path, what):
    """What it needs of it, it knows since its start: asked to leave, it saves."""
    folder = tmp_path / "run"
    process = started(folder, "steps=5000")
    (folder / "run.json").unlink()
    if what == "empty":
        (folder / "run.json").touch()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    steps = len(losses(folder))
    assert (folder / "checkpoints" / f"step-{steps:08d}" / "manifest.json").exists()


@pytest.mark.slow
def test_a_board_that_is_taken_away_is_begun_anew(tmp_path):
    board = Events(tmp_path / "board")
    board.add_scalar("a", 1.0, 1)
    shutil.rmtree(tmp_path / "board")
    board.add_scalar("a", 2.0, 2)
    assert events(tmp_path / "board") == [("a", 2)]


@pytest.mark.slow
def test_a_start_that_is_repeated_has_each_step_once(tmp_path):
    """Killed before its first checkpoint: what its first start told is told anew."""
    folder, marks = tmp_path / "run", tmp_path / "marks"
    marks.mkdir()
    command = [sys.executable, "-m", "vtx_scale.launch.cli", "train", "clip_vit_b32", "--smoke"]
    run = [*command, "--run", str(folder), "system.workers=0", "steps=8", "data.val_shards="]
    kill = {"VTX_KILL": "step-5:0", "VTX_KILL_ONCE": str(marks)}
    assert subprocess.run(run, env=environment(kill), stderr=subprocess.DEVNULL).returncode == -9
    assert subprocess.run(run, env=environment(), stderr=subprocess.DEVNULL).returncode == 0
    found = [step for tag, step in events(folder / "tensorboard") if tag == "train/loss"]
    assert found == list(range(1, 9))


@pytest.mark.slow
def test_no_whole_checkpoint_is_no_beginning(copy):
    """Work that cannot be read is not thrown away in silence."""
    for file in copy.glob("checkpoints/*/*.safetensors"):
        os.truncate(file, 100)
    before = {p: p.read_bytes() for p in copy.rglob("*.safetensors")}
    keys = ("system.workers=0", *KEYS)
    done = vtx("train", "clip_vit_b32", "--smoke", "--run", copy, *keys)
    assert done.returncode == 2 and "none of them is whole" in done.stderr, done.stderr
    assert {p: p.read_bytes() for p in before} == before
    assert len(losses(copy)) == 6


@pytest.mark.slow
@pytest.mark.parametrize("line", ['{"step":6,"name":["x"]}', "[" * 200_000, '{"step":6}'])
def test_foreign_lines_end_no_run(copy, line):
    """What informs is read as what informs."""
    for name in ("evaluations.jsonl", "metrics.jsonl", "ledger.jsonl"):
        with (copy / name).open("a") as f:
            f.write(line + "\n")
    train_on_ranks(copy, 1, "single", *KEYS)


def test_old_lines_become_strict(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step":1,"loss":NaN,"a":-Infinity}\n{"step":2,"loss":1.5}\n')
    truncate_after(path, 2)
    assert lines(path) == [{"step": 1, "loss": None, "a": None}, {"step": 2, "loss": 1.5}]
    assert b"NaN" not in path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("body", [[], {}, None, "x", {"hash": "x"}])
def test_a_run_json_of_something_else(copy, body):
    (copy / "run.json").write_text(json.dumps(body))
    done = vtx("evaluate", copy)
    assert done.returncode == 2 and "is not what a training wrote" in done.stderr, done.stderr


@pytest.mark.slow
def test_a_folder_that_is_gone_under_a_command(copy, tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    command = f"cd {here} && rmdir {here} && exec {sys.executable} -m vtx_scale.launch.cli"
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        ["sh", "-c", f"{command} checkpoints {copy}"],
        env=environment({"PYTHONPATH": root}),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2 and done.stderr.startswith("vtx: the folder"), done.stderr
    assert done.stderr.count("\n") == 1
