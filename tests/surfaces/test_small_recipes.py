"""The recipes for some thousand pictures of one's own: they are listed, fit one another, train, and
are never silent for long.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import children
from tests.runs import environment, lines, smoke, train, vtx
from vtx_scale.launch import recipes
from vtx_scale.launch.prepare import refuse
from vtx_scale.launch.show import recipe_rows

SMALL = {"vit_small": "labels", "dino_small": "without labels", "clip_small": "with captions"}


def test_they_are_listed_with_what_they_learn_from():
    """And not as ViT-S, which is another network."""
    rows = {row["name"]: row for row in recipe_rows() if row["name"] in SMALL}
    assert rows.keys() == SMALL.keys()
    for name, words in SMALL.items():
        summary = rows[name]["summary"]
        assert words in summary.lower() and "some thousand pictures" in summary, summary
    assert "not ViT-S" in rows["vit_small"]["summary"]


@pytest.mark.parametrize("name", SMALL)
def test_one_is_shown_with_its_epochs(name):
    done = vtx("show", name)
    assert done.returncode == 0 and re.search(r"^epochs +\d+", done.stdout, re.M), done.stderr


@pytest.mark.parametrize("name", SMALL)
def test_they_count_epochs_and_have_a_smoke_size(name):
    """So that a set of any size is seen as often; a smoke counts steps."""
    run, tiny = recipes.find(name), recipes.find(name, smoke=True)
    assert run.epochs and run.data.shards == "required" and run.evaluate
    assert (tiny.epochs, tiny.steps, tiny.data.shards) == (None, 12, "toy")
    assert type(tiny.objective) is type(run.objective)


def test_vit_small_and_dino_small_have_one_backbone():
    """But for the classifier and what drops in training."""
    vit, dino = (recipes.find(name).objective.net for name in ("vit_small", "dino_small"))
    assert vit.headless().calm() == dino


@pytest.mark.slow
def test_labels_go_on_from_pictures_alone(tmp_path):
    """`vit_small` from a run of `dino_small`: all but the classifier is the teacher's."""
    train(tmp_path / "dino", "steps=2", recipe="dino_small")
    keys = (f"init.from={tmp_path / 'dino'}", "init.head=new", "steps=2")
    train(tmp_path / "vit", *keys, recipe="vit_small")
    assert [row["step"] for row in lines(tmp_path / "vit" / "metrics.jsonl")] == [1, 2]
    done = vtx("train", "vit_small", "--smoke", "--run", tmp_path / "other", *keys[:1])
    assert done.returncode == 2 and "init.head=new" in done.stderr, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "to"), [("vit_small", "safetensors"), ("clip_small", "open_clip")]
)
def test_a_smoke_trains_scores_and_is_exported(tmp_path, name, to):
    train(tmp_path / "run", recipe=name)
    (scored,) = lines(tmp_path / "run" / "evaluations.jsonl")
    assert scored["name"] == recipes.find(name).evaluate[0].name and scored["step"] == 12
    done = vtx("export", tmp_path / "run", "--to", to, tmp_path / "out")
    assert done.returncode == 0 and list((tmp_path / "out").glob("*.safetensors")), done.stderr


def cpu_seconds(pid: int) -> float:
    """Of a process, those that it has waited for, and those below it that are alive."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return own + sum(cpu_seconds(child) for child in children(pid))


KEYS = {"vit_small": ("objective.net.classes=12",), "dino_small": (), "clip_small": ()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "clip_small" else pytest.mark.full) for n in SMALL]
)
def test_at_full_size_it_is_never_silent_for_long(tmp_path, name):
    """In seconds of the processor, on one thread: the recipe in 1.5, the first step at most 15
    behind what it takes to import torch, and a line every 5, with a second for a busy machine.
    """
    refuse(smoke(), tmp_path / "none", 1)  # toy shards are made once
    command = [sys.executable, "-m", "vtx_scale", "train", name, "--run", str(tmp_path / "run")]
    command += ["data.shards=toy", "system.leave_after=2", "system.workers=0", *KEYS[name]]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment())
    assert process.stderr is not None
    at = [(line.rstrip(), cpu_seconds(process.pid)) for line in process.stderr]
    assert process.wait(60) == 75, at
    asked = "import time, torch; print(time.process_time())"
    torch_takes = float(subprocess.check_output([sys.executable, "-c", asked], text=True))
    (first,) = [seconds for line, seconds in at if re.match(r"step 1/\d+  loss ", line)]
    print(at, torch_takes)
    assert at[0][0].startswith(f"{name}: ") and at[0][1] < 1.5, at
    assert first < torch_takes + 15, (at, torch_takes)
    assert all(b - a < 6 for (_, a), (_, b) in zip(at, at[1:], strict=False)), at
