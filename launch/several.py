"""A command that opens a trained run on several ranks of this machine: the run's parameters are
sharded over them, for a model that one process has no room for.
"""

import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from vtx_scale.data_pipeline.parent import die_with_parent
from vtx_scale.launch.node import Round
from vtx_scale.launch.process import init_process_group, rank_and_world
from vtx_scale.specs.run import System
from vtx_scale.trainer.output import say

TOGETHER = "VTX_TOGETHER"
GRACE = 5.0  # seconds for the other ranks to end by themselves when one has failed
DECIDED = (2, 4)  # codes of a rank that knew why, and said so


def is_rank() -> bool:
    """Whether this process is one of those that `run_together` started."""
    return TOGETHER in os.environ


def speaks() -> bool:
    """Whether what a command prints and writes is for this process to print and write."""
    return not is_rank() or rank_and_world()[0] == 0


def meet(device: torch.device, timeout: int = 600) -> int:
    """Join the other ranks; how many there are. Nothing to do for a process that is alone."""
    if not is_rank():
        return 1
    rank, world = rank_and_world()
    if not torch.distributed.is_initialized():
        die_with_parent(int(os.environ["VTX_PARENT"]))
        init_process_group(System(timeout=timeout), device, rank, world)
    return world


def run_together(words: list[str], world: int) -> int:
    """`vtx WORDS` on so many ranks; the exit code of the first that ended otherwise than with 0.

    Rank 0 has stdout and stderr; of another the sentence is shown where it alone says why, and a
    rank that a signal ended is named.
    """
    with tempfile.TemporaryDirectory(prefix="vtx-") as meeting:
        ranks, said = [], [Path(meeting, f"stderr-{rank}") for rank in range(world)]
        round = Round(1, world, 0, world, 0, f"file://{meeting}/store")
        for rank in range(world):
            with said[rank].open("wb") as err, open(os.devnull, "wb") as nowhere:
                ranks.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "vtx_scale.launch.cli", *words],
                        env={
                            **os.environ,
                            **round.environment(rank),
                            TOGETHER: "1",
                        },
                        stdout=nowhere if rank else None,
                        stderr=err if rank else None,
                    )
                )
        try:
            codes = ended(ranks)
        finally:
            for process in ranks:
                process.kill()
                process.wait()
        return first_failure(codes, said)


def ended(ranks: list[subprocess.Popen[bytes]]) -> dict[int, int]:
    """The codes of ranks by number, in the order in which they ended: of all, or of those that did
    within `GRACE` of the first that failed.
    """
    codes: dict[int, int] = {}
    until = math.inf
    while len(codes) < len(ranks) and time.monotonic() < until:
        for rank, process in enumerate(ranks):
            if rank not in codes and (code := process.poll()) is not None:
                codes[rank] = code
                if code:
                    until = min(until, time.monotonic() + GRACE)
        time.sleep(0.02)
    return codes


def first_failure(codes: dict[int, int], said: list[Path]) -> int:
    """The exit code of ranks that ended so, and the reason on stderr where rank 0 has not said it.
    One that a signal ended is named before those that it took along.
    """
    failed = [rank for rank, code in codes.items() if code]
    if not failed:
        return 0
    if killed := [rank for rank in failed if codes[rank] < 0]:
        say(f"vtx: rank {killed[0]} ended with signal {-codes[killed[0]]}.")
        return 1
    first = failed[0]
    if first and codes.get(0) not in DECIDED:
        text = said[first].read_text(errors="replace").rstrip()
        say(text or f"vtx: rank {first} ended with exit code {codes[first]}.")
    return codes[first]
