"""What operators give on the meta device, where a tensor has shapes and no values: found once, then
repeated.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

Layouts = list[tuple[torch.Size, tuple[int, ...], torch.dtype]]  # sizes, strides


class Results:
    """Calls an operator once for arguments of the same shapes and from then on gives tensors like
    those that came out: the layers of a network are alike, and most operators find the shapes of
    what comes out in Python, which is most of a trace's time.
    """

    def __init__(self) -> None:
        self.known: dict[Any, tuple[Layouts, bool] | None] = {}

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        key = (func, shapes_of(args), *((k, shapes_of(v)) for k, v in kwargs.items()))
        try:
            known = self.known.get(key)
        except TypeError:  # something that no dictionary takes
            return func(*args, **kwargs)
        if known is not None:
            layouts, alone = known
            made = [torch.empty_strided(*at, dtype=dtype, device="meta") for *at, dtype in layouts]
            return made[0] if alone else tuple(made)
        out = func(*args, **kwargs)
        if key not in self.known:
            self.known[key] = self.layouts(func, args, kwargs, out)
        return out

    @staticmethod
    def layouts(
        func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any
    ) -> tuple[Layouts, bool] | None:
        """None: what came out is not new, or not tensors on the meta device alone."""
        alone = isinstance(out, Tensor)
        outs = [out] if alone else out
        if not (alone or (type(out) is tuple and all(isinstance(t, Tensor) for t in out))):
            return None
        if func._schema.is_mutable or any(r.alias_info is not None for r in func._schema.returns):
            return None
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if not all(t.is_meta and type(t) in (Tensor, nn.Parameter) for t in (*given, *outs)):
            return None
        storages = [t.untyped_storage() for t in outs]
        others = {id(t.untyped_storage()) for t in given}
        # `_unsafe_view` for one says that it is new, and is not
        if any(id(s) in others for s in storages) or len({*map(id, storages)}) < len(storages):
            return None
        layouts = [(t.shape, t.stride(), t.dtype) for t in outs]
        like = [torch.empty_strided(*at, dtype=dtype, device="meta") for *at, dtype in layouts]
        if any(
            a.untyped_storage().nbytes() != s.nbytes() for a, s in zip(like, storages, strict=True)
        ):
            return None
        return layouts, alone


def shapes_of(x: Any) -> Any:
    """Arguments of an operator as something that a dictionary takes, tensors by shape and place.
    A number by its type too: 2 and 2.0 are equal and lead to other results.
    """
    if isinstance(x, Tensor):
        return x.shape, x.stride(), x.dtype, x.device, type(x)
    if isinstance(x, (list, tuple)):
        return tuple(map(shapes_of, x))
    return type(x), x
