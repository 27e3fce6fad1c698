"""What a dotted path names. Standard library only."""

import importlib
from typing import Any

from vtx_scale.data_pipeline.errors import UserError


def import_object(path: str) -> Any:
    """The object behind "package.module:Name". Raises UserError where there is none."""
    module, _, name = path.partition(":")
    if not module or not name:
        raise UserError(f"{path!r} names no class: a spec says build = 'package.module:Class'.")
    try:
        found = importlib.import_module(module)
    except (ImportError, ValueError) as e:
        raise UserError(
            f"{path!r} cannot be imported ({e}): put its folder on PYTHONPATH or beside the recipe."
        ) from e
    if not hasattr(found, name):
        raise UserError(f"{path!r}: {found.__name__} has no {name!r} ({found.__file__}).")
    return getattr(found, name)


def optimizer_class(path: str, cut: bool = False) -> Any:
    """The class that `optim.kind` names, see `vtx_scale.trainer.elsewhere`. cut: a rank has parts
    of parameters alone. Raises UserError for one that says less of itself than must be known.
    """
    found = import_object(path)
    if not callable(getattr(found, "initial_state", None)):
        raise UserError(
            f"optim.kind={path}: give the class a method initial_state(p) that returns what it "
            "keeps of a parameter before the first step, a dict of tensors in its shape."
        )
    if cut and getattr(found, "elementwise", False) is not True:
        raise UserError(
            f"optim.kind={path} does not say elementwise = True, and this system.strategy gives "
            "ranks parts of parameters: choose single, ddp or fairscale, or say so where each "
            "number moves by its own gradient and state alone."
        )
    return found
