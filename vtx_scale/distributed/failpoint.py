"""Faults on demand, for tests: VTX_KILL="NAME:RANK,..." ends that rank by SIGKILL when it reaches a
point, once each; of VTX_HANG="NAME:RANK,..." it comes no further there, once each; and
VTX_SLOW="NAME:RANK:SECONDS,..." holds it up there, every time; NAME may be a kind of points alone.

VTX_KILL_ONCE is a folder that remembers which have happened. Points: `step-N` (step N is done, its
save not begun), `backward-N`, `data-N` (its samples are asked for), `evaluate-N`, and in a save
`staging`, `before-table`, `before-manifest` and `after-manifest` (it is committed, nothing is
removed yet), each as `NAME-STEP`; in a snapshot in memory `memory-staging-N`, `memory-data-N`
(this rank's parts are written) and `memory-manifest-N`; `before-decision-N` and `decision-N`
around the writing of a
roll-back behind step N.
"""

import os
import signal
import time
from pathlib import Path


def asked(name: str) -> list[tuple[str, ...]]:
    """What a variable asks for."""
    return [tuple(x.split(":")) for x in os.environ.get(name, "").split(",") if x]


KILLED, HUNG, SLOW = asked("VTX_KILL"), asked("VTX_HANG"), asked("VTX_SLOW")


def failpoint(name: str) -> None:
    if not (KILLED or HUNG or SLOW):
        return
    rank = os.environ.get("RANK", "0")
    for where, whose, seconds in SLOW:
        if whose == rank and where in (name, name.partition("-")[0]):
            time.sleep(float(seconds))
    if (name, rank) in KILLED and first(name, rank):
        os.kill(os.getpid(), signal.SIGKILL)
    if (name, rank) in HUNG and first(name, rank):
        while True:
            time.sleep(1)


def first(name: str, rank: str) -> bool:
    """Whether it is the first time, over all starts of a run."""
    try:
        (Path(os.environ["VTX_KILL_ONCE"]) / f"{name}.{rank}").touch(exist_ok=False)
        return True
    except FileExistsError:
        return False
