"""`log.to`: which function opens the sink. Standard library alone.

A sink's function takes the recipe, resolved, as run.json has it (dict), the run's id (str, the same
at each start) and the finished steps that this start goes on from (int), and returns an object
with `write(step, values: dict[str, float])` and `close()`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.launch import recipes
from vtx_scale.launch.extras import need
from vtx_scale.specs.imports import import_object

Open = Callable[[dict[str, Any], str, int], Any]
PACKAGES = {"wandb": "wandb", "mlflow": "mlflow"}
OURS = {name: f"vtx_scale.launch.{name}_sink:open_sink" for name in PACKAGES}


def check_sink(to: str) -> None:
    """Raises UserError where `log.to` names no sink that can be had."""
    if to:
        function_of(to)


def function_of(to: str) -> Open:
    """Raises UserError."""
    if to in PACKAGES:
        need(PACKAGES[to], f"log.to={to}")
    path, colon, function = OURS.get(to, to).rpartition(":")
    if not colon:
        raise UserError(
            f"log.to={to}: give {', '.join(PACKAGES)}, path.py:function or module:function."
        )
    found: Any
    if path.endswith(".py"):
        found = getattr(recipes.module_of(Path(path)), function, None)
    else:
        found = import_object(f"{path}:{function}")
    if not callable(found):
        raise UserError(f"log.to={to}: {path} has no function {function!r}.")
    opened: Open = found
    return opened
