"""What one machine does not need may be absent: a sentence where somebody asks for it, and the rest
works.
"""

import os
import subprocess
import sys

import pytest

from tests.runs import environment, losses

# Read by Python as it starts: of these packages it finds nothing.
WITHOUT = """
import os, sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in os.environ["ABSENT"].split():
            return None
        return PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""
ABSENT = "ray boto3 botocore pyarrow av deepspeed fairscale transformers timm open_clip"
ABSENT += " sklearn wandb mlflow"


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    """The environment of an installation that has no extras."""
    folder = tmp_path_factory.mktemp("without")
    (folder / "sitecustomize.py").write_text(WITHOUT)
    env = environment({"ABSENT": ABSENT})
    return {**env, "PYTHONPATH": f"{folder}{os.pathsep}{env.get('PYTHONPATH', '')}"}


def typed(env, *words):
    command = [sys.executable, "-m", "vtx_scale", *map(str, words)]
    return subprocess.run(command, env=env, text=True, capture_output=True)


ASKED = (
    (("submit", "clip_vit_b32", "--smoke", "--run", "at"), "ray", "cluster"),
    (("jobs", "list"), "ray", "cluster"),
    (("worker", "--run", "at"), "ray", "cluster"),
    (("data", "verify", "s3://bucket/train"), "boto3", "s3"),
    (("train", "clip_vit_b32", "--smoke", "--run", "s3://bucket/run"), "boto3", "s3"),
    (("watch", "s3://bucket/run"), "boto3", "s3"),
    (("data", "verify", "at", "--address", "auto"), "ray", "cluster"),
    (("train", "clip_vit_b32", "--smoke", "--run", "at", "log.to=wandb"), "wandb", "wandb"),
    (("train", "clip_vit_b32", "--smoke", "--run", "at", "log.to=mlflow"), "mlflow", "mlflow"),
)


@pytest.mark.parametrize(("words", "package", "extra"), ASKED, ids=lambda of: str(of)[:40])
def test_who_needs_more_is_told_how_to_have_it(without, words, package, extra):
    done = typed(without, *words)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    wanted = f"needs {package}, which is not installed: pip install 'vtx-scale[{extra}]'."
    assert line.startswith("vtx: ") and line.endswith(wanted)


@pytest.mark.slow
def test_the_rest_trains_as_ever(without, tmp_path):
    words = ("train", "clip_vit_b32", "--smoke", "--run", tmp_path / "run", "steps=2")
    done = typed(without, *words)
    assert done.returncode == 0, done.stderr
    assert len(losses(tmp_path / "run")) == 2
