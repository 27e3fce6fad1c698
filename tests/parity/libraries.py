"""transformers, open_clip and timm, importable beside a torch whose torchvision is
absent or broken.

open_clip and timm import torchvision at their top, though their models do without. While they are
imported it is a package of empty classes, but for the five transforms that prepare pictures;
transformers comes first and keeps its own, true answer.
"""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import transformers

from tests.parity.transforms import (
    CenterCrop,
    Compose,
    InterpolationMode,
    Normalize,
    Resize,
    ToTensor,
    to_tensor,
)

NAMES = (
    "torchvision",
    "torchvision.transforms",
    "torchvision.transforms.functional",
    "torchvision.datasets",
    "torchvision.ops",
    "torchvision.ops.misc",
)


class Empty(ModuleType):
    """Every name in it is an empty class, which takes anything."""

    __path__: list[str] = []
    __version__ = "0"
    InterpolationMode = InterpolationMode

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": lambda self, *args, **keys: None})


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
if stand_ins:
    for transform in (Compose, Resize, CenterCrop, ToTensor, Normalize):
        setattr(stand_ins["torchvision.transforms"], transform.__name__, transform)
    stand_ins["torchvision.transforms.functional"].to_tensor = to_tensor
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
