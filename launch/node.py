"""The ranks of a run on one machine, from one round to the next.

A round is one start of all ranks of a run; whatever ends it, the next begins with all of them new.
Who runs a round decides when it is over: `local` on one machine, a cluster's driver on many.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


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
    """Starts `python -m vtx_scale.launch.worker REQUEST` for every rank of this machine, and ends
    what it started.

    request: what a rank must know, a JSON file. environment: of the ranks, beside this process's.
    """

    def __init__(self, request: Path, environment: Mapping[str, str] | None = None) -> None:
        self.request, self.environment = request, dict(environment or {})
        self.ranks: dict[int, subprocess.Popen[bytes]] = {}  # by their number in the world

    def begin(self, round: Round) -> None:
        """Start this machine's ranks of a round; those of the round before are ended first."""
        self.end()
        for local in range(round.ranks):
            # a group each: a terminal's Ctrl-C goes to all of a group, and the ranks hear of
            # it from their launcher
            self.ranks[round.first + local] = subprocess.Popen(
                [sys.executable, "-m", "vtx_scale.launch.worker", str(self.request)],
                process_group=0,
                env={**os.environ, **self.environment, **round.environment(local)},
            )

    def codes(self) -> dict[int, int | None]:
        """Rank -> its exit code, negative for a signal, None while it lives."""
        return {rank: process.poll() for rank, process in self.ranks.items()}

    def ask(self) -> None:
        """Ask the ranks that live to save and leave."""
        self.signal(signal.SIGTERM)

    def signal(self, number: int) -> None:
        """Send a signal to the ranks that live."""
        for process in self.ranks.values():
            if process.poll() is None:
                process.send_signal(number)

    def end(self) -> None:
        """End the ranks at once; they are gone when this returns."""
        self.signal(signal.SIGKILL)
        for process in self.ranks.values():
            process.wait()
        self.ranks = {}

    def close(self) -> None:
        """End the ranks, and whatever else was kept for the next round."""
        self.end()
