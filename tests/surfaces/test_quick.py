"""What help and refusals import is the standard library alone."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "ray", "boto3", "transformers", "PIL", "tokenizers")
MODULES = (
    "vtx_scale",
    "vtx_scale.launch",
    "vtx_scale.launch.cli",
    "vtx_scale.launch.override",
    "vtx_scale.launch.recipes",
    "vtx_scale.launch.recipes.clip",
    "vtx_scale.launch.run_folder",
    "vtx_scale.trainer.output",
    "vtx_scale.specs",
    "vtx_scale.specs.run",
    "vtx_scale.specs.vit",
    "vtx_scale.specs.clip",
    "vtx_scale.specs.models",
)


def found_after(code: str) -> list[str]:
    """Heavy packages in sys.modules of a new Python that has run `code`."""
    ask = f"{code}\nimport sys\nprint(*(x for x in {HEAVY!r} if x in sys.modules))"
    done = subprocess.run([sys.executable, "-c", ask], text=True, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("module", MODULES)
def test_imports_nothing_heavy(module):
    assert found_after(f"import {module}") == []


def test_recipes_and_models_are_made_without_torch():
    assert (
        found_after(
            "from vtx_scale.launch import recipes\nrecipes.find('clip_vit_b32', smoke=True)\n"
            "from vtx_scale.specs.models import published\npublished()"
        )
        == []
    )


def test_the_question_can_be_answered_otherwise():
    assert found_after("import vtx_scale.planner.count")[:2] == ["torch", "numpy"]
