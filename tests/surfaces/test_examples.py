"""The examples, run as their heads say: an objective, a backbone,
a webdataset pipeline, a notebook.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import environment, losses, vtx

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"


def python(*arguments, cwd):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        text=True,
        capture_output=True,
        timeout=200,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_objective(tmp_path):
    """It learns, is the same on two ranks of another strategy, and is evaluated."""
    recipe = f"{EXAMPLES / 'objective.py'}:rotations"
    for name, keys in (("one", ()), ("two", ("system.world=2", "system.strategy=fsdp"))):
        done = vtx("train", recipe, "--run", tmp_path / name, "steps=30", *keys)
        assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    assert losses(tmp_path / "one")[-1] < losses(tmp_path / "one")[0]
    assert "top1@" in vtx("evaluate", tmp_path / "one", "--with", "knn", "--json").stdout
    refused = vtx("train", recipe, "--run", tmp_path / "no", "objective.net.classes=5")
    assert (
        refused.returncode == 2
        and "there are 4 turns" in refused.stderr
        and not (tmp_path / "no").exists()
    )


def test_the_backbone(tmp_path):
    listed = json.loads(vtx("show", EXAMPLES / "backbone.py", "--json").stdout)
    assert [r["summary"][:5] for r in listed["recipes"]] == ["The s"] and listed["models"][0][
        "parameters"
    ] > 1e4
    recipe = f"{EXAMPLES / 'backbone.py'}:plain_conv"
    done = vtx(
        "train",
        recipe,
        "--run",
        tmp_path / "run",
        "steps=4",
        "system.world=2",
        "system.strategy=fsdp",
    )
    assert done.returncode == 0, done.stderr
    done = vtx("export", tmp_path / "run", "--to", "safetensors", tmp_path / "out")
    assert done.returncode == 0 and (tmp_path / "out" / "model.safetensors").exists()


def test_the_pipeline(tmp_path):
    assert vtx("data", "toy", tmp_path / "shards", "--samples", 64).returncode == 0
    lines = python(EXAMPLES / "webdataset_pipeline.py", "shards", cwd=tmp_path).splitlines()
    text = [line.partition(": ")[2] for line in lines[:2]]
    assert text[0] == text[1] and "(8, 32, 32, 3)" in text[0] and "'position': 48" in lines[-1]


def test_the_notebook(tmp_path):
    """Its cells, one after the other in one process."""
    cells = json.loads((EXAMPLES / "look.ipynb").read_text())["cells"]
    assert not any(cell.get("outputs") for cell in cells), (
        "a notebook is kept without what it printed"
    )
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    out = python("-c", code, cwd=tmp_path)
    assert "step 60 of 60" in out and "parameters in" in out and out.count("picture ") == 4
