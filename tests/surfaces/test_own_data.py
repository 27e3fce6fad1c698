"""The commands of docs/own_data.md as they stand, on a few pictures and for two steps."""

import csv
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.runs import environment
from tests.surfaces.test_readme import shell

PAGE = (Path(__file__).parents[2] / "docs" / "own_data.md").read_text()


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.M | re.S)


def pictures(folder: Path, side: str, of_class: int) -> None:
    """`side/CLASS/*.jpg` of ten classes, and `side.csv` with their captions and classes."""
    rows = []
    for k in range(10):
        (folder / side / f"class{k}").mkdir(parents=True)
        for n in range(of_class):
            name = f"{side}/class{k}/{n}.jpg"
            pixels = np.random.default_rng((k, n, len(side))).integers(0, 256, (40, 36, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
            rows.append((name, f"a photo of a class{k}", f"class{k}"))
    with (folder / f"{side}.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "caption", "label"), *rows])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    for side, of_class in (("train", 8), ("test", 2), ("photos", 3)):
        pictures(folder, side, of_class)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("k", range(len(blocks("bash"))))
def test_commands(place, k):
    """One block after the other; what is cut short are the epochs."""
    text = re.sub(r"\bepochs=\d+", "steps=2", blocks("bash")[k])
    done = shell(text, place)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_code_that_opens_a_run(place):
    (code,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=place, text=True, capture_output=True, env=environment()
    )
    assert done.returncode == 0 and re.fullmatch(r"class\d 0\.\d\d\n", done.stdout), done.stderr


def test_keys_that_a_training_cuts_short_are_there():
    """Or the test above would train for minutes."""
    trainings = re.findall(r"^vtx train .*?[^\\]$", "\n".join(blocks("bash")), re.M | re.S)
    assert len(trainings) >= 4 and all("epochs=" in command for command in trainings)
