"""N workers on this machine: started, watched, started again together when one dies,
ended together.
"""

import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from vtx_scale.checkpoints.format import steps
from vtx_scale.data_pipeline.objects import AnyPath
from vtx_scale.launch.paths import checkpoints_of
from vtx_scale.trainer.leave import requests
from vtx_scale.trainer.output import Ledger

RETRIES = 3  # starts in a row that save nothing new


def launch(
    request: Path,
    folder: AnyPath,
    world: int,
    say: Callable[[str], None],
    environment: Mapping[str, str] | None = None,
) -> int:
    """Run `python -m vtx_scale.launch.worker REQUEST` on `world` ranks until they finish;
    the exit code of the run.

    environment: of the ranks, beside this process's.

    A rank that dies (a signal, a lost peer) ends the others and all start again from the newest
    checkpoint; a rank that says why it stopped (codes 2, 3, 4, 75) is believed.
    """
    # rank 0 announces, the ranks lose patience, and a second request is followed below
    requests.announces, requests.patience = False, math.inf
    requests.repeated = lambda number: None
    last, failures = newest(folder), 0
    with requests.listen():
        while True:
            code = once(request, world, environment or {})
            if requests.count > 1:
                say("vtx: ended at once: steps after the newest checkpoint are lost.")
            if code in (0, 2, 3, 4, 75, 130):
                return code
            if requests.asked and code != -signal.SIGTERM:
                return max(code, 1)
            if requests.asked:  # our SIGTERM struck before a rank listened: there was nothing yet
                say("vtx: asked to leave, no step is lost by it: run the same command again.")
                return 75
            now = newest(folder)
            failures = 1 if now != last else failures + 1  # a roll-back begins at an older one
            last = now
            if failures > RETRIES:
                say(
                    f"the workers failed {failures} times without a new checkpoint: "
                    f"see log.txt in {folder}"
                )
                return 1
            why = f"signal {-code}" if code < 0 else f"exit code {code}"
            Ledger(folder).write(
                kind="restart", reason=f"a worker ended with {why}", step=now, time=time.time()
            )
            say(
                f"a worker ended with {why}: starting again from "
                f"{'step ' + str(now) if now else 'the beginning'}"
            )


def newest(folder: AnyPath) -> int:
    return max(steps(checkpoints_of(folder)), default=0)


def once(request: Path, world: int, environment: Mapping[str, str]) -> int:
    """One start of all ranks; the first code that is not 0, or 0."""
    with tempfile.TemporaryDirectory(prefix="vtx-") as meeting:
        # a group each: a terminal's Ctrl-C goes to all of a group, and the ranks hear of
        # it from here
        ranks = [
            subprocess.Popen(
                [sys.executable, "-m", "vtx_scale.launch.worker", str(request)],
                process_group=0,
                env={**os.environ, **environment, **rank_environment(rank, world, meeting)},
            )
            for rank in range(world)
        ]
        try:
            announced, first = False, 0
            deadline = None
            while any(r.poll() is None for r in ranks):
                if requests.count > 1:
                    return 130 if requests.last == signal.SIGINT else 1
                if requests.asked and not announced:
                    announced = True
                    for r in ranks:
                        if r.poll() is None:
                            r.send_signal(signal.SIGTERM)
                codes = [r.poll() for r in ranks]
                failed = [c for c in codes if c not in (None, 0)]
                if failed and not first:
                    first = failed[0]
                    # a rank that ended by decision decided with the others: they have
                    # time to follow
                    deadline = time.monotonic() + (10 if first == 75 else 1)
                if deadline is not None and time.monotonic() > deadline:
                    break
                time.sleep(0.05)
            codes = [c for r in ranks if (c := r.poll()) not in (None, 0)]
            decided = [c for c in codes if c in (2, 3, 4, 75)]
            return decided[0] if decided else first or next(iter(codes), 0) or 0
        finally:
            for r in ranks:
                if r.poll() is None:
                    r.kill()
            for r in ranks:
                r.wait()


def rank_environment(rank: int, world: int, meeting: str) -> dict[str, str]:
    """What torchrun would set, but for a meeting file in place of a port that somebody
    else could take.
    """
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world),
        "VTX_MEET": f"file://{meeting}/store",
        "VTX_PARENT": str(os.getpid()),
    }
