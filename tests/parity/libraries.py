"""transformers, open_clip and timm, importable beside a torch whose torchvision is
absent or broken.

open_clip and timm import torchvision at their top, though their models do without. While they are
imported it is a package of empty classes; transformers comes first and keeps its own, true answer.
"""

import sys
from enum import Enum
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import transformers

NAMES = (
    "torchvision",
    "torchvision.transforms",
    "torchvision.transforms.functional",
    "torchvision.datasets",
    "torchvision.ops",
    "torchvision.ops.misc",
)
Modes = Enum(
    "Modes",
    {
        x.upper(): x
        for x in ("nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos")
    },
)


class Empty(ModuleType):
    """Every name in it is an empty class."""

    __path__: list[str] = []
    __version__ = "0"
    InterpolationMode = Modes

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def works() -> bool:
    try:
        import torchvision  # noqa: F401
    except Exception:  # absent, or built for another torch
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        return False
    return True


transformers.utils.is_torchvision_available()  # remembered from here on
transformers.logging.set_verbosity_error()
stand_ins = {} if works() else {name: Empty(name) for name in NAMES}
for name, module in stand_ins.items():
    module.__spec__ = ModuleSpec(name, None, is_package=True)
    parent, _, leaf = name.rpartition(".")
    if parent:
        setattr(stand_ins[parent], leaf, module)
sys.modules.update(stand_ins)
try:
    import open_clip
    import timm
finally:
    for name in stand_ins:
        sys.modules.pop(name, None)

__all__ = ["open_clip", "timm", "transformers"]
