"""What snapshots in memory cost: blocks of steps of one run with and without them, by turns.

    python benchmarks/memory.py [--every 5] [--blocks 8] [--batch 32] [--width 256] [--depth 4]
                                [--strategy fsdp] [--out benchmarks/results/memory.json]

Two ranks of the real worker on the CPU, each as the one rank of a machine, with a folder of its own
in /dev/shm: under fsdp each sends its whole part to the other. A block is two snapshots long. The
overhead is the median over blocks of seconds with / seconds of the blocks beside it without - 1,
where steps and snapshots use the same processors. The same is given of the CPU seconds of rank 0's
process, which others on the machine do not stretch. Shown too are the seconds for which a snapshot
holds up the loop, and those that writing and sending take beside it, of rank 0.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from vtx_scale.launch import fit, override, recipes, worker
from vtx_scale.launch.prepare import prepare_folder, refuse
from vtx_scale.launch.resolve import resolve_data
from vtx_scale.specs.run import Run
from vtx_scale.trainer.loop import Trainer

WORLD = 2
WARM = 1  # pairs of blocks before those that count


class Timed(Trainer):
    """Makes snapshots in every other block, and notes when each step ended."""

    notes: list[dict[str, float]]

    def snapshot(self) -> None:
        """Behind a step: the end of the block before, and a snapshot where the block has them."""
        if not hasattr(self, "notes"):
            self.notes = []
        size, step = 2 * int(self.run.checkpoint.memory), self.progress.step
        began, kept = time.perf_counter(), self.snapshots
        busy = kept.seconds if kept is not None else 0.0
        self.snapshots = kept if (step - 1) // size % 2 else None
        super().snapshot()
        self.snapshots = kept
        now = time.perf_counter()
        spent = time.process_time()
        self.notes.append({"end": now, "cpu": spent, "held": now - began, "write": busy})

    def finish(self) -> None:
        """The notes of rank 0, beside the run."""
        if self.strategy.all.rank == 0:
            size = sum(
                path.stat().st_size
                for path in Path(os.environ["VTX_MEMORY"]).glob("step-*/*")
                if path.is_file()
            )
            Path(os.environ["VTX_NOTES"]).write_text(json.dumps([size, self.notes]))
        super().finish()


def rank(environment: dict[str, str], recipe: dict[str, Any], folder: Path) -> None:
    """One rank, on a machine of its own."""
    os.environ |= environment
    torch.set_num_threads(1)
    fit.Trainer = Timed  # type: ignore[attr-defined,misc]
    os._exit(worker.work(override.from_dict(recipe), folder))


def run_of(arguments: argparse.Namespace) -> Run:
    """CLIP with a trunk of that width and depth."""
    steps = 2 * arguments.every * 2 * (arguments.blocks + WARM)
    keys = [
        f"steps={steps}",
        f"global_batch={arguments.batch}",
        f"objective.image.width={arguments.width}",
        f"objective.image.mlp={4 * arguments.width}",
        f"objective.image.depth={arguments.depth}",
        f"objective.image.heads={arguments.width // 64}",
        f"system.strategy={arguments.strategy}",
        f"checkpoint.memory={arguments.every}",
        "system.workers=0",
    ]
    run = override.override(recipes.find("clip_vit_b32", smoke=True), keys)
    return resolve_data(run)


def measured(run: Run, scratch: Path) -> tuple[int, list[dict[str, float]]]:
    """Bytes of a machine's snapshots, and the notes of rank 0."""
    folder, notes = scratch / "run", scratch / "notes.json"
    prepare_folder(run, folder, refuse(run, folder, WORLD))
    memories = [Path(tempfile.mkdtemp(prefix="vtx-bench-", dir="/dev/shm")) for _ in range(WORLD)]
    context = multiprocessing.get_context("spawn")
    try:
        processes = []
        for r in range(WORLD):
            environment = {
                "RANK": str(r),
                "WORLD_SIZE": str(WORLD),
                "LOCAL_RANK": "0",
                "LOCAL_WORLD_SIZE": "1",
                "NODE_RANK": str(r),
                "VTX_MEMORY": str(memories[r]),
                "VTX_MEET": f"file://{scratch}/store",
                "VTX_NOTES": str(notes),
            }
            body = (environment, override.to_dict(run), folder)
            processes.append(context.Process(target=rank, args=body))
        for p in processes:
            p.start()
        for p in processes:
            p.join()
        if any(p.exitcode for p in processes):
            raise SystemExit("a rank ended with a fault")
        size, rows = json.loads(notes.read_text())
        return size, rows
    finally:
        for memory in memories:
            shutil.rmtree(memory, ignore_errors=True)


def overheads(ends: list[float], block: int) -> tuple[list[float], tuple[float, float]]:
    """Of each block with snapshots its overhead; a step without them and with them, medians."""
    spans = [ends[(k + 1) * block - 1] - ends[k * block - 1] for k in range(1, len(ends) // block)]
    ratios, plain, kept = [], [], []
    for k in range(2 * WARM, len(spans) - 1, 2):  # spans[0] is block 1, the first with snapshots
        beside = (spans[k - 1] + spans[k + 1]) / 2
        ratios.append(spans[k] / beside - 1)
        plain.append(beside / block)
        kept.append(spans[k] / block)
    return ratios, (statistics.median(plain), statistics.median(kept))


def figures(size: int, rows: list[dict[str, float]], every: int) -> dict[str, Any]:
    """Of the notes: the overhead and what it is made of."""
    block = 2 * every
    wall, (step, kept) = overheads([row["end"] for row in rows], block)
    cpu, _ = overheads([row["cpu"] for row in rows], block)
    held = [row["held"] for row in rows[2 * WARM * block :] if row["held"] > 1e-3]
    write = [row["write"] for row in rows[2 * WARM * block :] if row["write"] > 0]
    return {
        "every": every,
        "blocks": len(wall),
        "step_seconds": step,
        "step_seconds_with": kept,
        "overhead": statistics.median(wall),
        "overhead_least": min(wall),
        "overhead_most": max(wall),
        "overhead_of_cpu_seconds": statistics.median(cpu),
        "overhead_of_cpu_seconds_least": min(cpu),
        "overhead_of_cpu_seconds_most": max(cpu),
        "held_seconds": statistics.median(held) if held else 0.0,
        "held_of_interval": (statistics.median(held) if held else 0.0) / (every * step),
        "write_seconds": statistics.median(write) if write else 0.0,
        "mib_of_a_snapshot_on_a_machine": size / 2 / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--strategy", default="fsdp")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vtx-bench-") as scratch:
        found = figures(*measured(run_of(arguments), Path(scratch)), arguments.every)
    found |= {"strategy": arguments.strategy, "batch": arguments.batch, "width": arguments.width}
    print(json.dumps(found, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
