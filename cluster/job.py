"""What a launcher and a cluster say to each other."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Ended:
    """What a worker returns where the run is over by decision:
    its exit code, and a sentence for the user.
    """

    code: int
    message: str = ""


class Died(Exception):
    """What a worker raises where it should be started again; the text says why, in one sentence."""


class GaveUp(Exception):
    """The run cannot go on; the text says why, in one sentence."""


@dataclass(frozen=True)
class Job:
    """`worker(payload)` on `world` ranks.

    Both travel to other processes, which must be able to import them.
    """

    worker: Callable[[dict[str, Any]], Ended]
    payload: dict[str, Any]
    world: int | None  # None: as many as the cluster has GPUs, else 1
    gpus: bool  # one for each rank where the cluster has any
    failures: int  # restarts allowed
    saved: Callable[[], int]  # the newest committed step


@dataclass(frozen=True)
class Event:
    """What happened to the workers: they were asked for, they started, one failed, they ended."""

    kind: Literal["asked", "started", "failed", "ended"]
    why: str = ""
    saved: int = 0  # the newest committed step at a failure
    failures: int = 0  # until now
    codes: dict[int, int] = field(default_factory=dict)  # rank -> exit code at the end
