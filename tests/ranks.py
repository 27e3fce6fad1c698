"""Ranks for tests: real processes in a real process group,
forked from one server that has imported torch already.
"""

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

PATIENCE = 120.0  # seconds for all ranks of a cell

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.warm"])


def enter(
    rank: int, world: int, meet: str, function: Callable[..., Any], arguments: tuple, out: Any
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world),
        "VTX_MEET": f"file://{meet}/store",
        "OMP_NUM_THREADS": "1",
    }
    import torch

    torch.set_num_threads(1)
    try:
        out.put((rank, True, function(*arguments)))
    except BaseException:
        out.put((rank, False, traceback.format_exc()))
        raise SystemExit(1) from None


def on_ranks(world: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `function(*arguments)` returns on each rank;
    fails with the first rank's traceback that has one.
    """
    with tempfile.TemporaryDirectory(prefix="vtx-test-") as meet:
        out = SERVER.Queue()
        ranks = [
            SERVER.Process(target=enter, args=(r, world, meet, function, arguments, out))
            for r in range(world)
        ]
        for p in ranks:
            p.start()
        try:
            found: dict[int, Any] = {}
            for _ in range(world):
                rank, well, value = out.get(timeout=PATIENCE)
                assert well, f"rank {rank} of {world}:\n{value}"
                found[rank] = value
            return [found[r] for r in range(world)]
        finally:
            for p in ranks:
                p.join(10)
                if p.is_alive():
                    p.kill()
                    p.join()


def gathered(patience: float = PATIENCE) -> Any:
    """The process group of this rank's cell, made on first use. patience: seconds that a collective
    waits for the other ranks.
    """
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group(
            "gloo",
            init_method=os.environ["VTX_MEET"],
            rank=int(os.environ["RANK"]),
            world_size=int(os.environ["WORLD_SIZE"]),
            timeout=timedelta(seconds=patience),
        )
    return dist
