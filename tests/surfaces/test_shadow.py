"""Every command runs beside a user's own folders launch/, cluster/ and data_pipeline/.

The folders come first on the path of every process. Importing one leaves a mark and raises: a
process that looks for ours under such a name is seen even where it swallows the error.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.require import need
from tests.runs import environment, losses
from tests.surfaces.test_readme import blocks

pytestmark = pytest.mark.slow

TREE = Path(__file__).parents[2]
TAKEN = ("launch", "cluster", "data_pipeline")
TRAP = """
import pathlib

pathlib.Path(__file__).with_name("imported").touch()
raise RuntimeError("shadowed")
"""
SHORT = ("steps=3", "system.workers=1")


@pytest.fixture
def project(tmp_path):
    """A project of the user's where the three names are taken; none of them has been imported."""
    for name in TAKEN:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(TRAP)
    yield tmp_path
    assert not list(tmp_path.glob("*/imported"))


def python(project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A Python in the project. The tree comes after it on the path: it may not be installed."""
    env = environment({"PYTHONPATH": f".{os.pathsep}{TREE}"})
    done = subprocess.run(
        [sys.executable, *words], cwd=project, env=env, text=True, capture_output=True, timeout=240
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert "shadowed" not in output and "Traceback" not in output, output
    return done


def vtx(project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return python(project, "-m", "vtx_scale", *words)


@pytest.mark.parametrize("name", TAKEN)
def test_the_names_are_taken_there(tmp_path, name):
    """The trap shuts: whoever imports one of the names in this project gets the user's."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text(TRAP)
    with pytest.raises(AssertionError, match="shadowed"):
        python(tmp_path, "-c", f"import {name}")
    assert (tmp_path / name / "imported").exists()


def test_help(project):
    assert "usage: vtx" in vtx(project, "--help").stdout


def test_a_training_on_two_ranks_with_loader_workers(project):
    vtx(project, "train", "clip_vit_b32", "--smoke", "--run", "R", "system.world=2", *SHORT)
    assert len(losses(project / "R")) == 3
    opened = python(project, "-c", "import vtx_scale; print(vtx_scale.open_run('R').step)")
    assert opened.stdout.split() == ["3"]


def test_a_training_under_ray(project):
    need("ray")
    vtx(project, "submit", "clip_vit_b32", "--smoke", "--run", "R", "system.world=2", *SHORT)
    assert len(losses(project / "R")) == 3


def test_a_recipe_of_the_users_on_two_ranks(project):
    (project / "mine.py").write_text(next(b for b in blocks("python") if b.startswith("# mine.py")))
    vtx(project, "train", "mine.py:shapes", "--run", "R", "system.world=2", *SHORT)
    assert len(losses(project / "R")) == 3
