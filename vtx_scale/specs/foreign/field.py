"""The decision on one field of another library's config."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

# their names of an activation -> ours
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "quick_gelu": "quick_gelu",
    "quickgelu": "quick_gelu",
    "gelu_tanh": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}


@dataclass(frozen=True)
class Field:
    """set: a fact of the recipe's network, which follows the config. refused: unless it `fits`.
    shown: tensors' names or shapes differ with it, so that such weights fit nowhere else.
    harmless: the network computes the same, `why` says for what reason.

    default: what a config means that leaves the field out.
    """

    decision: Literal["set", "refused", "shown", "harmless"]
    why: str = ""
    default: Any = None
    fits: Callable[[Any], bool] = lambda value: True


Table = Mapping[str, Field]


def sets(default: Any = None) -> Field:
    """A field that decides a fact."""
    return Field("set", default=default)


def only(*allowed: Any, why: str, default: Any = None) -> Field:
    """A field that must have one of these values; the default is the first, where none is given."""
    first = allowed[0] if default is None else default
    return Field("refused", why, first, lambda value: value in allowed)


def square(default: Any = None) -> Field:
    """A size of pixels, a number or a pair."""

    def alike(value: Any) -> bool:
        return not isinstance(value, list | tuple) or len(set(value)) == 1

    return Field("refused", "and pictures here are square", default, alike)


def shown(why: str = "tensors have other names or shapes", default: Any = None) -> Field:
    """A field that the tensors show."""
    return Field("shown", why, default)


def harmless(why: str) -> Field:
    """A field that the network's arithmetic does not know."""
    return Field("harmless", why)


def value_of(table: Table, section: Mapping[str, Any], name: str) -> Any:
    """What a config says of a field, or means by leaving it out."""
    return section[name] if name in section else table[name].default


def faults(table: Table, section: Mapping[str, Any], where: str = "") -> list[str]:
    """Clauses on the fields of a section that are refused: what it says, and why that cannot be."""
    return [
        f"{where}{name}={section[name]}, {field.why}"
        for name, field in table.items()
        if field.decision == "refused" and name in section and not field.fits(section[name])
    ]


def unknown(table: Table, section: Mapping[str, Any], where: str = "") -> list[str]:
    """The fields of a section on which nobody has decided."""
    return [where + name for name in section if name not in table]
