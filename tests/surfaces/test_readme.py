"""The README's commands and code, run as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import environment

README = Path(__file__).parents[2] / "README.md"


def blocks(kind):
    return re.findall(rf"^```{kind}\n(.*?)^```$", README.read_text(), re.M | re.S)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which the tour has been taken, with the commands of this environment
    on the path.
    """
    folder = tmp_path_factory.mktemp("readme")
    code = next(b for b in blocks("python") if b.startswith("# mine.py"))
    (folder / "mine.py").write_text(code)
    return folder


def shell(text, folder):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=folder,
        text=True,
        capture_output=True,
        timeout=280,
        env=environment({"PATH": path}),
    )


@pytest.mark.slow
@pytest.mark.parametrize("k", range(len(blocks("bash"))))
def test_commands(place, k):
    text = blocks("bash")[k]
    done = shell(text, place)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    if "leave_after=20" in text:
        assert "resumed at step 20 of 40" in done.stderr and len(text.strip().splitlines()) == 16


@pytest.mark.slow
def test_the_code_that_opens_a_run(place):
    code = next(b for b in blocks("python") if "open_run" in b)
    script = f"{code}\nprint(tuple(image.shape), tuple(text.shape))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=place, text=True, capture_output=True, env=environment()
    )
    assert done.stdout.strip() == "(2, 32) (1, 32)", done.stderr


def test_every_other_command_names_what_exists():
    """Commands that need a cluster or somebody's data are not run,
    but their options and recipes must exist.
    """
    text = README.read_text()
    recipes = subprocess.run(
        [sys.executable, "-m", "vtx_scale.launch.cli", "show", "recipes", "--json"],
        text=True,
        capture_output=True,
        env=environment(),
    ).stdout
    for name in set(re.findall(r"\bclip_\w+", text)):
        assert f'"{name}"' in recipes, name
    for link in re.findall(r"\((docs/[^)]+)\)|`(docs/[^`]+|tests/[^`]+)`", text):
        assert (README.parent / (link[0] or link[1])).exists(), link
