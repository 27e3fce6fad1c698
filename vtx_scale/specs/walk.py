"""One walk over the fields of specs. Standard library only."""

import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, cast

from vtx_scale.specs.run import Run
from vtx_scale.specs.spec import Spec


def shown(name: str) -> str:
    """A field's name on the command line: `from_` is `from`."""
    return name.rstrip("_")


def hints(spec: Spec | type[Spec]) -> dict[str, Any]:
    """Field name as shown -> declared type."""
    kind = spec if isinstance(spec, type) else type(spec)
    types = typing.get_type_hints(kind)
    return {shown(f.name): types[f.name] for f in fields(kind)}


def specs(spec: Spec, prefix: str = "") -> Iterator[tuple[str, Spec]]:
    """Every spec in a spec, with the prefix of its keys."""
    for f in fields(spec):
        value = getattr(spec, f.name)
        if is_dataclass(value):
            parts = {f"{prefix}{shown(f.name)}.": value}
        elif isinstance(value, tuple) and value and is_dataclass(value[0]):
            parts = {f"{prefix}{shown(f.name)}.{k}.": v for k, v in enumerate(value)}
        else:
            continue
        for where, part in parts.items():
            inner = cast(Spec, part)
            yield where, inner
            yield from specs(inner, where)


def walk(spec: Spec, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(key, value, declared type) of every field that is not a spec itself."""
    kinds = hints(spec)
    for f in fields(spec):
        value, key = getattr(spec, f.name), prefix + shown(f.name)
        if is_dataclass(value):
            yield from walk(cast(Spec, value), f"{key}.")
        elif isinstance(value, tuple) and value and is_dataclass(value[0]):
            for i, v in enumerate(value):
                yield from walk(v, f"{key}.{i}.")
        else:
            yield key, value, kinds[shown(f.name)]


def differences(a: Run, b: Run) -> dict[str, tuple[Any, Any]]:
    """Key -> (value in a, value in b) where they differ."""
    one, two = ({k: v for k, v, _ in walk(r)} for r in (a, b))
    return {
        k: (one.get(k), two.get(k))
        for k in [*one, *(k for k in two if k not in one)]
        if one.get(k) != two.get(k)
    }
