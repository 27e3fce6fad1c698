"""Machines for tests: ranks of the real worker with a memory and a number of their own, which are
killed and start again as a launcher starts them.
"""

import os
import shutil
import tempfile
from pathlib import Path

from tests import slow
from tests.ranks import PATIENCE, SERVER
from vtx_scale.launch import override, recipes
from vtx_scale.launch.prepare import prepare_folder, refuse
from vtx_scale.specs.run import Run


class Machines:
    """So many machines with so many ranks each, for the run in a folder."""

    def __init__(self, run: Run, folder: Path, machines: int, ranks: int) -> None:
        slow.must_be_marked()
        self.run, self.folder, self.machines, self.ranks = run, folder, machines, ranks
        self.world, self.marks = machines * ranks, folder.parent / f"{folder.name}-marks"
        self.marks.mkdir()
        self.memories = [folder.parent / f"{folder.name}-memory-{k}" for k in range(machines)]
        for memory in self.memories:
            memory.mkdir()
        prepare_folder(run, folder, refuse(run, folder, self.world))

    def lose(self, machine: int) -> None:
        """Another machine comes in its place: nothing is in its memory."""
        shutil.rmtree(self.memories[machine])
        self.memories[machine].mkdir()

    def round(self, *kills: str, delay: float = 0.0) -> list[int]:
        """One start of all ranks; their exit codes. kills: POINT:RANK, as of VTX_KILL. delay:
        seconds that a snapshot takes longer.
        """
        with tempfile.TemporaryDirectory(prefix="vtx-test-") as meet:
            processes = [
                SERVER.Process(target=rank, args=(self.about(r, meet), self.body(), kills, delay))
                for r in range(self.world)
            ]
            for p in processes:
                p.start()
            for p in processes:
                p.join(PATIENCE)
            late = [p for p in processes if p.is_alive()]
            for p in late:
                p.kill()
                p.join()
            assert not late, "ranks did not end"
            return [p.exitcode or 0 for p in processes]

    def about(self, rank: int, meet: str) -> dict[str, str]:
        machine, place = divmod(rank, self.ranks)
        return {
            "RANK": str(rank),
            "WORLD_SIZE": str(self.world),
            "LOCAL_RANK": str(place),
            "LOCAL_WORLD_SIZE": str(self.ranks),
            "NODE_RANK": str(machine),
            "VTX_MEMORY": str(self.memories[machine]),
            "VTX_MEET": f"file://{meet}/store",
            "VTX_KILL_ONCE": str(self.marks),
            "OMP_NUM_THREADS": "1",
        }

    def body(self) -> tuple:
        return override.to_dict(self.run), self.folder, recipes.STRANGERS


def rank(environment: dict[str, str], body: tuple, kills: tuple[str, ...], delay: float) -> None:
    os.environ |= environment
    import torch

    from vtx_scale.distributed import failpoint
    from vtx_scale.launch import worker

    torch.set_num_threads(1)
    failpoint.KILLED[:] = [tuple(k.rsplit(":", 1)) for k in kills]
    failpoint.SLOW[:] = [("memory-data", environment["RANK"], str(delay))] if delay else []
    recipe, folder, paths = body
    recipes.let_import(paths)
    os._exit(worker.work(override.from_dict(recipe), folder))
