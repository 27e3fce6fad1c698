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
