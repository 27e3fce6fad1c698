"""A command that opens a trained run on several ranks of this machine: the run's parameters are
sharded over them, for a model that one process has no room for.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from vtx_scale.data_pipeline.loader import die_with_parent
from vtx_scale.launch.local import rank_environment
from vtx_scale.launch.process import init_process_group, rank_and_world
from vtx_scale.specs.run import System
from vtx_scale.trainer.output import say

TOGETHER = "VTX_TOGETHER"


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

    Rank 0 has stdout and stderr; of another the sentence is shown where it alone says why.
    """
    with tempfile.TemporaryDirectory(prefix="vtx-") as meeting:
        ranks, said = [], [Path(meeting, f"stderr-{rank}") for rank in range(world)]
        for rank in range(world):
            with said[rank].open("wb") as err, open(os.devnull, "wb") as nowhere:
                ranks.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "vtx_scale.launch.cli", *words],
                        env={
                            **os.environ,
                            **rank_environment(rank, world, meeting),
                            TOGETHER: "1",
                        },
                        stdout=nowhere if rank else None,
                        stderr=err if rank else None,
                    )
                )
        try:
            return first_failure(ranks, said)
        finally:
            for process in ranks:
                process.kill()
                process.wait()


def first_failure(ranks: list[subprocess.Popen[bytes]], said: list[Path]) -> int:
    """The code of the first rank that failed, or 0 when all have ended."""
    waiting = dict(enumerate(ranks))
    while waiting:
        for rank, process in list(waiting.items()):
            try:
                code = process.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
            del waiting[rank]
            if code:
                if rank:
                    say(said[rank].read_text(errors="replace").rstrip())
                return code if code > 0 else 1
    return 0
