"""N workers on this machine: started, watched, started again together when one dies,
ended together.
"""

import math
import signal
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

from vtx_scale.checkpoints.format import steps
from vtx_scale.data_pipeline.objects import AnyPath
from vtx_scale.launch.node import Node, Round
from vtx_scale.launch.paths import checkpoints_of
from vtx_scale.launch.warm import Warm
from vtx_scale.trainer.leave import requests
from vtx_scale.trainer.output import Ledger

RETRIES = 3  # starts in a row that save nothing new
DECIDED = (2, 3, 4, 75)  # codes of a rank that says why it stopped


def launch(
    request: Path,
    folder: AnyPath,
    world: int,
    say: Callable[[str], None],
    environment: Mapping[str, str] | None = None,
    warm: Warm | None = None,
) -> int:
    """Run `vtx_scale.launch.worker REQUEST` on `world` ranks until they finish;
    the exit code of the run.

    environment: of the ranks, beside this process's. warm: where a server was started early.

    A rank that dies (a signal, a lost peer) ends the others and all start again from the newest
    checkpoint; a rank that says why it stopped (codes 2, 3, 4, 75) is believed.
    """
    # rank 0 announces, the ranks lose patience, and a second request is followed below
    requests.announces, requests.patience = False, math.inf
    requests.repeated = lambda number: None
    last, failures, number = newest(folder), 0, 0
    with requests.listen(), closing(Node(request, environment, warm)) as node:
        while True:
            number += 1
            code = once(node, number, world)
            if requests.count > 1:
                say("vtx: ended at once: steps after the newest checkpoint are lost.")
            if code in (0, *DECIDED, 130):
                return code
            if requests.asked and code != -signal.SIGTERM:
                return max(code, 1)
            if requests.asked:  # our SIGTERM struck before a rank listened: there was nothing yet
                say("vtx: asked to leave, no step is lost by it: run the same command again.")
                return 75
            now = max(newest(folder), node.kept())
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


def once(node: Node, number: int, world: int) -> int:
    """One start of all ranks; the first code that is not 0, or 0."""
    with tempfile.TemporaryDirectory(prefix="vtx-") as meeting:
        node.begin(Round(number, world, 0, world, 0, f"file://{meeting}/store"))
        try:
            return ended(node)
        finally:
            node.end()


def ended(node: Node) -> int:
    """Wait for the ranks of a round, and pass a request to leave on to them; the first code that
    is not 0, or 0.
    """
    announced, first, deadline = False, 0, math.inf
    while None in (codes := node.codes()).values():
        if requests.count > 1:
            return 130 if requests.last == signal.SIGINT else 1
        if requests.asked and not announced:
            announced = True
            node.ask()
        failed = [code for code in codes.values() if code]
        if failed and not first:
            first = failed[0]
            # a rank that ended by decision decided with the others: they have time to follow
            deadline = time.monotonic() + (10 if first == 75 else 1)
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    failed = [code for code in node.codes().values() if code]
    decided = [code for code in failed if code in DECIDED]
    return decided[0] if decided else first or next(iter(failed), 0)
