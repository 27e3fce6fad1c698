"""What rank r of 1,024 really holds, by torch's fake process group, beside the closed form.

python -m tests.vtx_scale.many_ranks    prints a line of JSON: rows, CPU seconds, MiB at the peak
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from vtx_scale.launch import recipes
from vtx_scale.launch.build import build_objective
from vtx_scale.planner.layout import layout_of
from vtx_scale.planner.shapes import held, parameters_of
from vtx_scale.specs.run import System
from vtx_scale.strategies.apply import strategy_of

WORLD, RANKS = 1_024, (0, 511, 1_023)
LAYOUTS = {
    "fsdp": System(strategy="fsdp"),
    "hsdp 16 x 64": System(strategy="hsdp", replicas=16),
    "tp 8 x fsdp 128": System(strategy="fsdp", tp=8),
    "tp 2 x fsdp 512": System(strategy="fsdp", tp=2),
}
HEADS_62 = "dalle_12b"  # which 8 does not divide
RECIPES = ("dalle_12b", "vit_g14_jft3b", "clip_vit_h14")


def counts(recipe: str, rank: int, name: str) -> dict[str, object]:
    """Numbers on this rank of the fake group, and what the planner says."""
    objective = build_objective(recipes.find(recipe, False), torch.float32)
    parameters = parameters_of(objective)
    system = LAYOUTS[name]
    strategy = strategy_of(system, WORLD, torch.device("cpu"), None)
    strategy.prepare(objective)
    layout = layout_of(system, system.strategy_at(WORLD, False), WORLD)
    index = rank // layout.tp % layout.ways
    return {
        "recipe": recipe,
        "rank": rank,
        "layout": name,
        "held": [leaf.tensor.numel() for leaf in strategy.leaves()],
        "planned": [
            held([p], layout.kind.weights, layout.ways, index, layout.tp) for p in parameters
        ],
    }


def rows() -> Iterator[dict[str, object]]:
    for rank in RANKS:
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=WORLD)
        for recipe in RECIPES:
            spare = "tp 8 x fsdp 128" if recipe == HEADS_62 else "tp 2 x fsdp 512"
            yield from (counts(recipe, rank, name) for name in LAYOUTS if name != spare)
        dist.destroy_process_group()


if __name__ == "__main__":
    found = list(rows())
    # of this program alone: what ru_maxrss says begins at the size of the process that started it
    status = Path("/proc/self/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    print(json.dumps({"rows": found, "seconds": time.process_time(), "mib": peak}))
