"""`vtx evaluate` and `vtx sample` on several ranks: what one process would say, with a part of the
model each.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vtx_scale
from tests.ranks import on_ranks
from tests.runs import environment, train, vtx

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folders = {}

    def get(recipe):
        if recipe not in folders:
            folders[recipe] = tmp_path_factory.mktemp(recipe) / "run"
            train(folders[recipe], "steps=4", recipe=recipe)
        return folders[recipe]

    return get


@pytest.mark.parametrize(
    ("recipe", "names"),
    [
        pytest.param("dino_vit_s16", "knn,linear", marks=pytest.mark.full),
        ("clip_vit_b32", "zero_shot,retrieval"),
    ],
)
def test_scores_are_those_of_one_process(runs, recipe, names):
    found = []
    for world in (1, 3):
        words = ("evaluate", runs(recipe), "--with", names, "--json", f"system.world={world}")
        done = vtx(*words)
        assert done.returncode == 0, done.stderr
        found.append([json.loads(line) for line in done.stdout.splitlines()])
    one, several = found
    assert [row["name"] for row in one] == names.split(",") == [row["name"] for row in several]
    for a, b in zip(one, several, strict=True):
        assert a.keys() == b.keys()
        scores = [k for k in a if not isinstance(a[k], str)]  # the rest are names and pictures
        assert scores and all(b[k] == pytest.approx(a[k], rel=1e-4) for k in scores)


@pytest.mark.full
def test_pictures_are_those_of_one_process(runs, tmp_path):
    for world in (1, 2):
        out = tmp_path / str(world)
        text = ("--text", "a red circle", "--count", 2, f"system.world={world}")
        done = vtx("sample", runs("dalle_12b"), out, *text)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [str(out / f"000-00{k}.png") for k in (0, 1)]
    for k in (0, 1):
        a, b = (np.asarray(Image.open(tmp_path / f"{w}/000-00{k}.png")) for w in (1, 2))
        assert np.array_equal(a, b)


def share_of_model(folder):
    """Numbers of parameters that lie on this rank."""
    os.environ |= {"VTX_TOGETHER": "1", "VTX_PARENT": str(os.getppid())}
    from vtx_scale.launch.open_run import open_run

    return sum(getattr(p, "_local_tensor", p).numel() for p in open_run(folder).model.parameters())


def test_each_rank_holds_a_part(runs):
    whole = sum(p.numel() for p in vtx_scale.open_run(runs("clip_vit_b32")).model.parameters())
    parts = on_ranks(2, share_of_model, runs("clip_vit_b32"))
    assert sum(parts) == whole and max(parts) < 0.6 * whole


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("evaluate", "RUN", "system.world=0"), "system.world=0: give 1 or more"),
        (("evaluate", "RUN", "--with", "nothing", "system.world=2"), "no evaluator 'nothing'"),
        (("sample", "RUN", "OUT", "system.world=2"), "draws no pictures for captions"),
        (("sample", "RUN", "OUT", "--text", "hi", "system.world=2"), "draws no pictures for"),
        (("export", "RUN", "--to", "safetensors", "OUT", "system.world=2"), "system.world: a run"),
    ],
)
def test_refusals_are_said_once(runs, tmp_path, words, sentence):
    names = {"RUN": runs("clip_vit_b32"), "OUT": tmp_path / "out"}
    done = vtx(*(names.get(w, w) for w in words))
    assert done.returncode == 2 and done.stderr.count(sentence) == 1, done.stderr
    assert done.stderr.count("vtx:") == 1 and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_rank_that_is_killed_is_named(runs):
    """While they start: the other one would wait for it."""
    words = [sys.executable, "-m", "vtx_scale", "evaluate", runs("clip_vit_b32"), "system.world=2"]
    with subprocess.Popen(words, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 60
        victim = None
        while victim is None and time.monotonic() < until:
            victim = rank_of(process.pid, 1)
            time.sleep(0.05)
        os.kill(victim, signal.SIGKILL)
        said = process.stderr.read()
    assert process.returncode == 1 and said == "vtx: rank 1 ended with signal 9.\n"


def rank_of(launcher, rank):
    """The process of a rank that a command has started; None before that."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    for child in children:
        if f"\0RANK={rank}\0".encode() in b"\0" + Path(f"/proc/{child}/environ").read_bytes():
            return int(child)
    return None
