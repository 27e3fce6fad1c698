"""The ranks of a run on one machine, from one round to the next.

A round is one start of all ranks of a run; whatever ends it, the next begins with all of them new.
Who runs a round decides when it is over: `local` on one machine, a cluster's driver on many.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vtx_scale.launch.beats import Beats
from vtx_scale.launch.hangs import Beat
from vtx_scale.launch.memory import room_for
from vtx_scale.launch.warm import Warm
from vtx_scale.trainer.output import say

WORDS = "VTX_WORDS"  # the folder where a launcher looks for the sentences with which ranks ended


@dataclass(frozen=True)
class Round:
    """What a machine must know to begin its part of a round.

    meet: where the ranks meet, file://... on one machine, else tcp://HOST:PORT of rank 0's.
    """

    number: int  # from 1 on
    world: int  # ranks on all machines
    first: int  # the first rank of this machine
    ranks: int  # ranks on this machine
    node: int  # number of this machine
    meet: str

    def environment(self, local: int) -> dict[str, str]:
        """What torchrun would set for a rank, but for VTX_MEET in place of an address."""
        return {
            "RANK": str(self.first + local),
            "WORLD_SIZE": str(self.world),
            "LOCAL_RANK": str(local),
            "LOCAL_WORLD_SIZE": str(self.ranks),
            "NODE_RANK": str(self.node),
            "VTX_ROUND": str(self.number),
            "VTX_MEET": self.meet,
            "VTX_PARENT": str(os.getpid()),
        }


class Node:
    """Begins and ends the ranks of this machine, each `vtx_scale.launch.worker REQUEST`.

    request: what a rank must know, a JSON file. environment: of the ranks, beside this process's.
    They are forked from a warm server, `warm` where one was started early; with system.spare=0,
    and where nothing can be forked, each is a new Python. For several threads.
    """

    def __init__(
        self, request: Path, environment: Mapping[str, str] | None = None, warm: Warm | None = None
    ) -> None:
        self.memory = room_for(request)
        kept = self.memory.environment if self.memory is not None else {}
        self.request, self.environment = request, {**kept, **(environment or {})}
        self.warm, self.forks = warm, True
        self._beats = Beats()
        self.round: Round | None = None  # which the warm server was asked for
        self.lock = threading.RLock()
        self.cold: dict[int, subprocess.Popen[bytes]] = {}  # by their number in the world

    def begin(self, round: Round) -> None:
        """Start this machine's ranks of a round; those of the round before are ended first."""
        with self.lock:
            self.end()
            self._beats.begin()
            recipe = json.loads(self.request.read_text())["recipe"]
            if not self.forks or not keeps_warm(recipe["system"]["spare"]):
                self._begin_cold(round)
                return
            if self.warm is None or not self.warm.alive:
                self._close_warm()
                self.warm = Warm(self.environment)
            self.round = round
            ranks = {round.first + local: round.environment(local) for local in range(round.ranks)}
            self.warm.fork(self.request, self._known(), ranks)

    def _known(self) -> dict[str, str]:
        """The environment of all ranks."""
        return {**os.environ, **self.environment, **self._beats.environment}

    def _begin_cold(self, round: Round) -> None:
        known = self._known()
        for local in range(round.ranks):
            # a group each: a terminal's Ctrl-C goes to all of a group, and the ranks hear of
            # it from their launcher
            self.cold[round.first + local] = subprocess.Popen(
                [sys.executable, "-m", "vtx_scale.launch.worker", str(self.request)],
                process_group=0,
                env={**known, **round.environment(local)},
            )

    def codes(self) -> dict[int, int | None]:
        """Rank -> its exit code, negative for a signal, None while it lives."""
        with self.lock:
            forked = {} if self.warm is None else self.warm.codes()
            if self.warm is not None and self.warm.unfit and self.round is not None:
                say(f"ranks cannot be forked, for {self.warm.unfit}: each starts as a new Python")
                self.forks = False
                self._close_warm()
                self._begin_cold(self.round)
            return forked | {rank: process.poll() for rank, process in self.cold.items()}

    def kept(self) -> int:
        """The newest step of which this machine has a snapshot in memory, 0 for none."""
        return self.memory.newest() if self.memory is not None else 0

    def beats(self) -> list[Beat]:
        """Where the ranks that live stand."""
        return self._beats.read(rank for rank, code in self.codes().items() if code is None)

    def stacks(self) -> dict[int, str]:
        """Rank -> what its threads are doing, of those that live; takes some seconds."""
        return self._beats.stacks(rank for rank, code in self.codes().items() if code is None)

    def ask(self) -> None:
        """Ask the ranks that live to save and leave."""
        self.signal(signal.SIGTERM)

    def signal(self, number: int) -> None:
        """Send a signal to the ranks that live."""
        with self.lock:
            self.codes()  # those that must start as a new Python have by then
            if self.warm is not None:
                self.warm.signal(number)
            for process in self.cold.values():
                if process.poll() is None:
                    process.send_signal(number)

    def end(self) -> None:
        """End the ranks at once; they are gone when this returns."""
        with self.lock:
            self.round = None
            if self.warm is not None:
                self.warm.end()
            for process in self.cold.values():
                process.kill()
            for process in self.cold.values():
                process.wait()
            self.cold = {}

    def close(self) -> None:
        """End the ranks, the warm server too, and what was kept for the next round."""
        with self.lock:
            self.end()
            self._close_warm()
            if self.memory is not None:
                self.memory.close()
            self._beats.close()

    def _close_warm(self) -> None:
        if self.warm is not None:
            self.warm.close()
            self.warm = None


def keeps_warm(spare: str) -> bool:
    """Whether ranks are forked from a warm server, by `system.spare`."""
    return spare != "0"
