"""Faults on demand, for tests: VTX_KILL="NAME:RANK,..." ends that rank by SIGKILL when it reaches a
point, once each.

VTX_KILL_ONCE is a folder that remembers which have happened. Points: `step-N` (step N is done, its
save not begun), `backward-N`, and in a save `staging`, `before-table`, `before-manifest` and
`after-manifest` (it is committed, nothing is removed yet), each as `NAME-STEP`; `before-decision-N`
and `decision-N` around the writing of a roll-back behind step N.
"""

import os
import signal
from pathlib import Path

ASKED = [tuple(x.rsplit(":", 1)) for x in os.environ.get("VTX_KILL", "").split(",") if x]


def failpoint(name: str) -> None:
    if not ASKED:
        return
    rank = os.environ.get("RANK", "0")
    if (name, rank) in ASKED:
        mark = Path(os.environ["VTX_KILL_ONCE"]) / f"{name}.{rank}"
        try:
            mark.touch(exist_ok=False)
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)
