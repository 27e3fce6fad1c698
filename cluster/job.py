"""What a launcher and a cluster say to each other."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


class GaveUp(Exception):
    """The run cannot go on; the text says why, in one sentence."""


class Ranks(Protocol):
    """One machine's ranks, all new in every round. All calls come from one thread, which lives as
    long as the process does.
    """

    def begin(self, *about: Any) -> None:
        """Start this machine's ranks of a round; those of the round before are ended first."""

    def codes(self) -> dict[int, int | None]:
        """Rank -> its exit code, negative for a signal, None while it lives."""

    def words(self) -> dict[int, str]:
        """Rank -> the sentence with which it ended, of those that gave one."""

    def beats(self) -> list[Any]:
        """Where the ranks that live stand, in a form that travels."""

    def stacks(self) -> dict[int, str]:
        """Rank -> what it is doing, of those that live; takes some seconds."""

    def kept(self) -> int:
        """The newest step that is kept in memory, 0 for none."""

    def ask(self) -> None:
        """Ask the ranks that live to save and leave."""

    def end(self) -> None:
        """End the ranks at once."""

    def close(self) -> None:
        """End the ranks, and whatever else was kept for the next round."""


@dataclass(frozen=True)
class State:
    """What a machine says of its ranks: see `Ranks`."""

    codes: dict[int, int | None] = field(default_factory=dict)
    words: dict[int, str] = field(default_factory=dict)
    beats: list[Any] = field(default_factory=list)
    kept: int = 0


@dataclass(frozen=True)
class Job:
    """`start(payload, folder)` is called once on every machine, with an empty folder there, and
    gives its `Ranks`. Both travel to other processes, which must be able to import them.

    It raises UserError where this machine lacks what the run needs.
    """

    start: Callable[[dict[str, Any], Path], Ranks]
    payload: dict[str, Any]
    gpus: bool  # a rank takes a GPU, where the cluster has any, else a CPU


@dataclass(frozen=True)
class Machine:
    """A node of a cluster.

    key: the cluster's id of it, another one whenever it comes back. name: for people, and what is
    remembered of it. slots: how many ranks it has room for, our own included.
    """

    key: str
    name: str
    address: str
    slots: int


@dataclass(frozen=True)
class Limits:
    """Seconds. A machine that is silent for `silence` is lost; ranks that nobody asks after for
    `ttl` are ended by their machine; `start`: until a machine's actor answers.
    """

    silence: float = 20.0
    ttl: float = 30.0
    start: float = 90.0
    aside: float = 60.0  # until a machine that was silent, or had no room, is tried again
    poll: float = 0.5
    look: float = 2.0  # between two looks at the cluster
    settle: float = 10.0  # a round's age from which on it may grow
