"""What help and refusals import is the standard library alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "numpy", "ray", "boto3", "transformers", "PIL", "tokenizers")
MODULES = (
    "vtx_scale",
    "vtx_scale.launch",
    "vtx_scale.launch.cli",
    "vtx_scale.launch.override",
    "vtx_scale.launch.recipes",
    "vtx_scale.launch.recipes.clip",
    "vtx_scale.launch.address",
    "vtx_scale.launch.attempts",
    "vtx_scale.launch.packing",
    "vtx_scale.launch.run_folder",
    "vtx_scale.trainer.output",
    "vtx_scale.specs",
    "vtx_scale.cluster.storage.pace",
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


# where an import stands inside a function, and why
LAZY = {
    "launch/commands/*.py": "help and refusals are quick: a command's work is loaded when it runs",
    "vtx_scale/__init__.py": "`import vtx_scale` is light: its door is opened when it is used",
    "launch/train.py": "a launcher of many ranks, and a refusal, do without torch",
    "launch/prepare.py": "what a stranger wrote, ranks share, or an evaluator says, needs torch",
    "launch/hub.py": "huggingface_hub is an extra",
    "launch/places.py": "boto3 is for those who name a bucket",
    "launch/pools.py": "Ray reads its settings when it is imported",
    "launch/submission.py": "Ray reads its settings when it is imported; a job needs no torch",
    "launch/submit.py": "Ray reads its settings when it is imported",
    "launch/show.py": "a file of recipes alone needs a count",
    "vtx_scale/strategies/deepspeed_package.py": "DeepSpeed looks for its device when imported",
    "vtx_scale/trainer/log.py": "TensorBoard is a second of imports, for rank 0 alone",
    "data_pipeline/text.py": "captions as bytes need no library",
    "data_pipeline/video.py": "PyAV is an extra",
    "data_pipeline/wds.py": "webdataset is loaded where a pipeline of it is built",
    "data_pipeline/tools/*.py": "scikit-learn is an extra, the tokenizers' trainer for one command",
}
ROOT = Path(__file__).parents[2]


def lazy_imports(file: Path) -> list[str]:
    """The imports of a file that stand inside its functions."""
    functions = (n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.FunctionDef))
    found = (
        n for f in functions for n in ast.walk(f) if isinstance(n, ast.Import | ast.ImportFrom)
    )
    return [ast.unparse(n) for n in found]


def test_imports_stand_at_the_head_of_a_file():
    """But for those that are listed here with their reason; a command's head has one line."""
    seen = set()
    for folder in ("launch", "cluster", "data_pipeline", "vtx_scale"):
        for file in (ROOT / folder).rglob("*.py"):
            name, found = file.relative_to(ROOT), lazy_imports(file)
            why = [pattern for pattern in LAZY if name.match(pattern)]
            assert not found or why, f"{name}: {found}"
            if name.parent.name == "commands" and name.name != "__init__.py":
                assert len(found) == 1, f"{name}: {found}"
            seen |= set(why) if found else set()
    assert seen == set(LAZY), "a reason without a use"
