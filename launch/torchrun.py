"""What torchrun leaves open where it runs over several machines.

Its agents, one a machine, keep one store over all their restarts, and number restarts each for
itself: so the ranks of a start agree on a name for it (`round_name`). An agent whose ranks have
ended waits ten minutes for one that is gone for good: so a process beside it ends it after our own
limit (`watch`). That process is this file: `python -m vtx_scale.launch.torchrun AGENT SECONDS`,
told by its standard input.
"""

import contextlib
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from datetime import timedelta
from typing import Protocol

from vtx_scale.cluster.guard import processes

LOOK = 0.5  # seconds between two looks at an agent
GRACE = 10.0  # seconds that an agent has to end by itself
WATCHERS: list[subprocess.Popen[bytes]] = []  # of this process


class Store(Protocol):
    """What is used of torch's TCPStore."""

    def set(self, key: str, value: str) -> None:
        """Store a value."""

    def get(self, key: str) -> bytes:
        """The value of a key that is there."""

    def check(self, keys: list[str]) -> bool:
        """Whether all of them are there."""

    def wait(self, keys: list[str], timeout: timedelta) -> None:
        """Until all are there; raises a RuntimeError after the timeout."""


def round_name(store: Store, rank: int, world: int, seconds: float) -> str:
    """A word that the ranks of this start have in common, and no start before had.

    What an earlier start left in the store is told from what this one says: each rank greets rank 0
    with a word of its own, and is answered by that word alone. seconds: until all must have come.

    Raises TimeoutError on rank 0, a RuntimeError of the store on the others, where one does not
    come.
    """
    mine = secrets.token_hex(8)
    if rank:
        store.set(f"vtx/hello/{rank}", mine)
        store.wait([f"vtx/round/{mine}"], timedelta(seconds=seconds))
        name = store.get(f"vtx/round/{mine}").decode()
        store.set(f"vtx/here/{name}/{rank}", "")
        return name
    answered = dict.fromkeys(range(1, world), "")
    until = time.monotonic() + seconds
    while answered:
        for other, word in list(answered.items()):
            if store.check([f"vtx/here/{mine}/{other}"]):
                del answered[other]
            elif store.check([f"vtx/hello/{other}"]):
                heard = store.get(f"vtx/hello/{other}").decode()
                if heard != word:
                    answered[other] = heard
                    store.set(f"vtx/round/{heard}", mine)
        if answered and time.monotonic() > until:
            late = ", ".join(map(str, answered))
            raise TimeoutError(f"within system.timeout={seconds:g} s there came no rank {late}")
        time.sleep(0.01)
    return mine


def watch(seconds: float) -> None:
    """Where the agent of this process is one of several, and this is its first rank: see that it
    does not wait for the others for longer than twice this: a rank elsewhere that was within a
    collective as this one died may see so only after this time, and then has to come.
    """
    over = int(os.environ.get("GROUP_WORLD_SIZE", 1)) > 1
    if over and os.environ.get("LOCAL_RANK") == "0":
        words = [sys.executable, "-m", __spec__.name, str(os.getppid()), str(seconds)]
        WATCHERS.append(
            subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # an agent ends all of a rank's group
            )
        )


def tell(code: int) -> None:
    """This process ends with that exit code."""
    while WATCHERS:
        told = WATCHERS.pop().stdin
        if told is not None:
            with contextlib.suppress(BrokenPipeError), told:
                told.write(str(code).encode())


def children(agent: int) -> set[tuple[int, int]]:
    """(process id, when it started) of the ranks of an agent that live."""
    alive = processes().items()
    return {(p, at) for p, (parent, at) in alive if parent == agent and p != os.getpid()}


def say(why: str) -> None:
    print(f"vtx: {why}. To go on, start torchrun on all machines again.", file=sys.stderr)


def main(argv: list[str]) -> None:
    """Wait until the rank that started this has ended; then see that the agent starts others."""
    agent, limit = int(argv[0]), float(argv[1])
    if not hasattr(os, "pidfd_open") or not hasattr(signal, "pidfd_send_signal"):
        return  # not Linux: nobody watches there
    try:
        life = os.pidfd_open(agent)
    except ProcessLookupError:
        return
    code = sys.stdin.read()  # none: it was killed
    if code == "0":
        return
    before, until = children(agent), time.monotonic() + 2 * limit
    while time.monotonic() < until:
        if select.select([life], [], [], LOOK)[0]:
            if code in ("", "1"):  # else it has said why
                say("torchrun has ended here before the run did")
            return
        if children(agent) - before:
            return
    say(
        "a machine of this torchrun is gone: no rank could be started again within "
        f"twice system.timeout={limit:g} s"
    )
    for number in (signal.SIGTERM, signal.SIGKILL):
        signal.pidfd_send_signal(life, number)
        if select.select([life], [], [], GRACE)[0]:
            return


if __name__ == "__main__":
    main(sys.argv[1:])
