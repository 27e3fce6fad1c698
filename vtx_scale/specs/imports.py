"""What a dotted path names. Standard library only."""

import importlib
from typing import Any

from vtx_scale.data_pipeline.errors import UserError


def import_object(path: str) -> Any:
    """The object behind "package.module:Name". Raises UserError where there is none."""
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as e:
        raise UserError(
            f"{path!r} cannot be imported ({e}): put its folder on PYTHONPATH or beside the recipe."
        ) from e
