"""The door for Python: `vtx_scale.train`, what `vtx train` does without a terminal."""

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.objects import AnyPath
from vtx_scale.launch import checks, override, recipes
from vtx_scale.launch.places import place_at
from vtx_scale.launch.train import train as vtx_train
from vtx_scale.specs import walk
from vtx_scale.specs.run import Run, as_run


class RunEnded(Exception):
    """A training that did not finish.

    `code` is the exit code of `vtx train`: 3 not finite, 4 out of memory, 75 asked to leave and
    saved, 1 anything else. Its sentence has been printed and stands in log.txt.
    """

    def __init__(self, code: int, folder: AnyPath) -> None:
        super().__init__(f"the run in {folder} ended with code {code}: see its log.txt")
        self.code = code


def train(
    recipe: str | Callable[[], Run] | Run, folder: str | Path, *, smoke: bool = False, **keys: Any
) -> None:
    """Train until the end, or go on with the run that is in the folder.

    recipe: a name of `vtx show recipes`, "path.py:function", a function that returns a Run, or a
    Run. smoke: the tiny sibling of a named recipe. keys: fields to change, as on the command line;
    one with a dot in its name is given as `**{"data.shards": "/data/train"}`. Raises UserError for
    wrong input, RunEnded where the run did not finish.
    """
    run = run_of(recipe, smoke)
    run = override.override(run, [f"{key}={text(value)}" for key, value in keys.items()])
    checks.refuse_required(run, recipe if isinstance(recipe, str) else "the recipe")
    code = vtx_train(run, place_at(folder))
    if code == 2:
        raise UserError(f"The run in {folder} was refused: the sentence stands above.")
    if code:
        raise RunEnded(code, place_at(folder))


def run_of(recipe: str | Callable[[], Run] | Run, smoke: bool) -> Run:
    """The Run that is meant; where its specs come from is put on the path of the processes
    that train it.
    """
    if isinstance(recipe, str):
        return recipes.find(recipe, smoke)
    if smoke:
        raise UserError("smoke=True is for recipes by name: give the small recipe itself.")
    run = as_run(recipe() if callable(recipe) else recipe, "The recipe")
    recipes.let_import(homes(run))
    return run


def homes(run: Run) -> list[str]:
    """The folders from which the modules of a run's specs are imported, but for this package's."""
    found = []
    for kind in {type(spec) for _, spec in walk.specs(run)}:
        module = kind.__module__
        file = getattr(sys.modules.get(module), "__file__", None)
        if module.split(".")[0] not in ("vtx_scale", "__main__") and file:
            found.append(str(Path(inspect.getfile(kind)).resolve().parents[module.count(".")]))
    return sorted(set(found))


def text(value: Any) -> str:
    """A value as one would type it behind `key=`."""
    if isinstance(value, tuple | list):
        return ",".join(map(text, value))
    return (
        "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )
