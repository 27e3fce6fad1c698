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

from vtx_scale.data_pipeline.objects import AnyPath, ObjectPath
from vtx_scale.launch.beats import Watcher
from vtx_scale.launch.node import Node, Round
from vtx_scale.launch.rounds import (
    HUNG,
    Tries,
    Watch,
    left,
    newest,
    patiently,
    reason,
    start_of,
)
from vtx_scale.launch.warm import Warm
from vtx_scale.trainer.goodput import attempt_name
from vtx_scale.trainer.goodput import ended as ended_at
from vtx_scale.trainer.leave import requests
from vtx_scale.trainer.output import Ledger, append_text


def launch(
    request: Path,
    folder: AnyPath,
    world: int,
    say: Callable[[str], None],
    environment: Mapping[str, str] | None = None,
    warm: Warm | None = None,
    *,
    timeout: float = 120.0,
    epoch: int = 0,
) -> int:
    """Run `vtx_scale.launch.worker REQUEST` on `world` ranks until they finish;
    the exit code of the run.

    environment: of the ranks, beside this process's. warm: where a server was started early.
    timeout: seconds that a collective may take. epoch: of the lease on the folder.

    A rank that dies (a signal, a lost peer) ends the others and all start again from the newest
    checkpoint; a rank that says why it stopped (codes 2, 3, 4, 75) is believed.
    """
    # rank 0 announces, the ranks lose patience, and a second request is followed below
    requests.announces, requests.patience = False, math.inf
    requests.repeated = lambda number: None
    tries, number = Tries(patiently(folder, newest, folder) or 0), 0
    with requests.listen(), closing(Node(request, environment, warm)) as node:
        while True:
            number += 1
            watcher = Watcher(folder, attempt_name(epoch, number), timeout, say)
            code = once(node, number, world, watcher, Watch(isinstance(folder, ObjectPath)))
            ended_at(folder, watcher.attempt, code, watcher.since)
            if requests.count > 1:
                say("vtx: ended at once: steps after the newest checkpoint are lost.")
            if (end := left(requests, code)) is not None:
                if code == -signal.SIGTERM and end == 75:
                    say("vtx: asked to leave, no step is lost by it: run the same command again.")
                return end
            stored = patiently(folder, newest, folder)
            if stored is None:
                say("vtx: asked to leave while nothing ran: run the same command again.")
                return 75
            now = max(stored, node.kept())
            if tries.failed(now):
                say(
                    f"the workers failed {tries.failures} times without a new checkpoint: "
                    f"see log.txt in {folder}"
                )
                return 1
            why = "the ranks hang" if code == HUNG else f"a worker ended with {reason(code)}"
            Ledger(folder).write(kind="restart", reason=why, step=now, time=time.time())
            line = f"{why}: starting again from {start_of(now)}"
            say(line)
            append_text(folder, line)


def once(node: Node, number: int, world: int, watcher: Watcher, watch: Watch) -> int:
    """One start of all ranks; the first code that is not 0, or 0."""
    with tempfile.TemporaryDirectory(prefix="vtx-") as meeting:
        node.begin(Round(number, world, 0, world, 0, f"file://{meeting}/store"))
        try:
            return ended(node, watcher, watch)
        finally:
            node.end()


def ended(node: Node, watcher: Watcher, watch: Watch) -> int:
    """Wait for the ranks of a round, and pass a request to leave on to them; the first code that
    is not 0, or 0, and HUNG where they come no further.
    """
    announced = False
    while not watch.over(codes := node.codes()):
        if requests.count > 1:
            return 130 if requests.last == signal.SIGINT else 1
        if requests.asked and not announced:
            announced = True
            node.ask()
        if watch.first is None and watcher.due:
            if (verdict := watcher.see(node.beats())) is not None:
                watcher.keep(verdict, node.stacks())
                return HUNG
        time.sleep(0.05)
    return watch.verdict(codes)[1]
