"""Published models by name, whole: classifiers of 1000 classes, both towers and the scale.

Standard library only.
"""

import importlib
import pkgutil

from vtx_scale import specs
from vtx_scale.specs.spec import Spec


def published() -> dict[str, tuple[Spec, int]]:
    """Name -> (spec, pixels of a side), of every file here that has a `published()` of its own."""
    models: dict[str, tuple[Spec, int]] = {}
    for file in pkgutil.iter_modules(specs.__path__):
        module = importlib.import_module(f"vtx_scale.specs.{file.name}")
        if module.__name__ != __name__ and hasattr(module, "published"):
            models |= {name: (spec, spec.resolution) for name, spec in module.published().items()}
    return models
