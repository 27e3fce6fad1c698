"""A stranger's objective: one file and a recipe outside the tree trains, resumes, evaluates and opens."""

from pathlib import Path

import numpy as np

from tests.promises.harness import COLOUR, losses, vtx
from vtx_scale import open_run


def test_a_strangers_objective(tmp_path):
    own = tmp_path / "mine"
    own.mkdir()
    source = Path(COLOUR.partition(":")[0]).read_text()  # under a name of its own: a process knows one module of a name
    (own / "their_colour.py").write_text(source.replace("average_colour:", "their_colour:"))
    folder = tmp_path / "run"
    command = ["train", own / "their_colour.py:average_colour", "--run", folder, "system.workers=1", "steps=120"]
    first = vtx(*command, "system.leave_after=50", cwd=tmp_path)
    assert first.returncode == 75, first.stderr
    second = vtx(*command, "system.world=2", "system.strategy=fsdp", cwd=tmp_path)
    assert second.returncode == 0 and "resumed at step 50 of 120" in second.stderr, second.stderr
    assert len(losses(folder)) == 120
    assert sum(losses(folder)[-10:]) < sum(losses(folder)[:10]) / 10

    scored = vtx("evaluate", folder, "--json", cwd=tmp_path)
    assert scored.returncode == 0 and '"error":' in scored.stdout, scored.stderr
    opened = open_run(folder)
    colour = opened.probes["colour"](np.full((2, 16, 16, 3), 200, np.uint8))
    assert colour.shape == (2, 3) and colour.dtype.is_floating_point
    assert opened.step == 120
    tree = Path(__file__).parents[2]
    assert not list((tree / "vtx_scale").rglob("*_colour*")), "the tree was touched"


def test_a_file_that_shadows_a_module_is_named(tmp_path):
    (tmp_path / "json.py").write_text("def recipe():\n    return None\n")
    done = vtx("train", tmp_path / "json.py:recipe", "--run", tmp_path / "run")
    assert done.returncode == 2 and "rename the file" in done.stderr


def test_a_broken_recipe_is_one_sentence(tmp_path):
    (tmp_path / "mine.py").write_text("import nothing_of_that_name\n")
    done = vtx("train", tmp_path / "mine.py:recipe", "--run", tmp_path / "run")
    assert done.returncode == 2 and "No module named 'nothing_of_that_name'" in done.stderr and "Traceback" not in done.stderr
