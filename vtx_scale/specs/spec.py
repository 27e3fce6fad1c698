"""What every spec is: a frozen dataclass, standard library alone,
so that help and refusals are quick.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Anything configurable.

    `build` is the dotted path "package.module:Class" of what it configures.
    """

    build: ClassVar[str] = ""
    # a field that only its user can give, "required" until then -> what to say: "learns from a
    # teacher: add ..."
    needs: ClassVar[Mapping[str, str]] = {}
    # fields that name a file or folder -> words that are none; the same of lists of shards
    paths: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    shard_lists: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    # fields that name a function, perhaps as path.py:function
    functions: ClassVar[tuple[str, ...]] = ()
    # field -> words that it took once -> what they are now
    former: ClassVar[Mapping[str, Mapping[str, str]]] = {}

    def faults(self) -> list[str]:
        """What types cannot say and would not work: "field=value:
        a sentence", fields from here on down.
        """
        return []

    @classmethod
    def title(cls) -> str:
        """The name without Config, as users see it."""
        return cls.__name__.removesuffix("Config")
