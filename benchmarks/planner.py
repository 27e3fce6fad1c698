"""The planner beside measured memory: small runs on the CPU, each in processes of its own.

    python benchmarks/planner.py [--only NAME ...] [--out benchmarks/results/planner.json]

Measured is what the kernel says a rank's process had resident at the most in three steps of the
real loop, above what it had before the model was built, when all libraries were loaded and a tiny
run under the same strategy had gone through them. glibc gives each freed block of 64 KiB or more
back at once (MALLOC_MMAP_THRESHOLD_), so that resident is what is alive, and what kernels take on
the way. Planned is `vtx_scale.planner.memory` of the same rank: parameters, gradients, optimizer,
followers, live units, buffers and activations. The bar: 10 % apart.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from vtx_scale.blocks.rules import initial_values
from vtx_scale.checkpoints.write import Writer
from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.data_pipeline.storage import Folder
from vtx_scale.distributed.ranks import Ranks
from vtx_scale.launch import override, recipes
from vtx_scale.launch.build import build_objective, reader_of, train_batches
from vtx_scale.launch.datasets import training_data
from vtx_scale.launch.process import init_process_group
from vtx_scale.launch.resolve import resolve_data
from vtx_scale.planner.activations import trace
from vtx_scale.planner.layout import layout_of
from vtx_scale.planner.memory import Memory, Numbers, memory
from vtx_scale.planner.shapes import parameters_of
from vtx_scale.specs.run import Run
from vtx_scale.strategies.apply import apply, strategy_of
from vtx_scale.trainer.control import Control
from vtx_scale.trainer.init import initialise_slices
from vtx_scale.trainer.log import Log
from vtx_scale.trainer.loop import Trainer
from vtx_scale.trainer.optim import optimizer_of
from vtx_scale.trainer.output import Ledger
from vtx_scale.trainer.precision import precision_of

BAR = 0.1
STEPS = 3
MIB = 2**20


@dataclass(frozen=True)
class Case:
    """A recipe's smoke size with these keys, on so many ranks."""

    recipe: str
    keys: str
    world: int = 1

    def run(self) -> Run:
        keys = [*self.keys.split(), "system.workers=0", f"steps={STEPS}"]
        found = override.override(recipes.find(self.recipe, True), keys)
        return replace(resolve_data(found), evaluate=())


CLIP = (
    "objective.image.width=512 objective.image.heads=8 objective.image.mlp=2048 "
    "objective.image.depth=6 objective.image.resolution=64 objective.text.width=256 "
    "objective.text.heads=4 objective.text.depth=4"
)
VIT = "objective.net.width=512 objective.net.heads=8 objective.net.mlp=2048 objective.net.depth=8"
DALLE = "objective.net.width=512 objective.net.heads=8 objective.net.depth=8"
CASES = {
    "clip": Case("clip_vit_b32", f"{CLIP} global_batch=32"),
    "clip recomputed": Case("clip_vit_b32", f"{CLIP} global_batch=64 system.recompute=full"),
    "clip selective": Case("clip_vit_b32", f"{CLIP} global_batch=64 system.recompute=selective"),
    "clip bf16": Case("clip_vit_b32", f"{CLIP} global_batch=32 system.precision=bf16"),
    "clip in parts": Case("clip_vit_b32", f"{CLIP} global_batch=64 system.micro_batch=16"),
    "vit, micro-batches": Case("vit_b16_jft", f"{VIT} global_batch=64 system.micro_batch=16"),
    "vit, Adafactor": Case("vit_g14_jft3b", f"{VIT} global_batch=32"),
    "dalle recomputed": Case("dalle_12b", f"{DALLE} global_batch=16 system.recompute=full"),
    "resnet, SGD": Case("resnet50_imagenet", "global_batch=64 objective.net.resolution=64"),
    "dino": Case("dino_vit_s16", f"{VIT} global_batch=8"),
    "clip ddp 2": Case("clip_vit_b32", f"{CLIP} global_batch=32 system.strategy=ddp", 2),
    "clip fsdp 2": Case("clip_vit_b32", f"{CLIP} global_batch=32 system.strategy=fsdp", 2),
    "clip zero1 2": Case("clip_vit_b32", f"{CLIP} global_batch=32 system.strategy=zero1", 2),
    "clip zero3 2": Case("clip_vit_b32", f"{CLIP} global_batch=32 system.strategy=zero3", 2),
    "clip fairscale 2": Case(
        "clip_vit_b32", f"{CLIP} global_batch=32 system.strategy=fairscale", 2
    ),
    "clip tp 2": Case("clip_vit_b32", f"{CLIP} global_batch=32 system.strategy=tp", 2),
    "vit hsdp 2 x 2": Case(
        "vit_b16_jft", f"{VIT} global_batch=64 system.strategy=hsdp system.replicas=2", 4
    ),
}


class Given:
    """The same batch at every step."""

    end = 0  # slots handed out

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def next(self) -> Batch:
        return self.batch


class Silent(Writer):
    """No checkpoint."""

    def save(self, step: int, slices: object, state: object) -> None:
        pass


def trained(run: Run, rank: int, world: int, folder: Path) -> None:
    """Some steps of the loop."""
    device = torch.device("cpu")
    precision = precision_of(run.system, device)
    strategy = strategy_of(run.system, world, device, precision.compute)
    objective = build_objective(run, precision.weights, strategy.data)
    apply(objective, strategy, run.system)
    initialise_slices(strategy, initial_values(objective), run.seed)
    optimizer = optimizer_of(strategy.leaves(), run.optim)
    batches = train_batches(run, training_data(run), strategy.data.rank, strategy.data.world)
    log = Log(folder, run.steps, on=False, device=device)
    Trainer(
        run,
        objective,
        strategy,
        optimizer,
        Given(Batch(**batches[0])),
        Silent(Folder(folder / "c"), rank, world, "a", 1),
        precision,
        Control(folder, rank),
        Ledger(folder),
        log,
        dict,
    ).train()
    log.close()


def status(field: str) -> int:
    """Bytes, as the kernel says of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def measure(case: Case, rank: int) -> int:
    """Bytes of this rank at the most, above what it had before."""
    run = case.run()
    init_process_group(run.system, torch.device("cpu"), rank, case.world)
    small = replace(recipes.find(case.recipe, True), system=run.system, steps=STEPS, evaluate=())
    with tempfile.TemporaryDirectory() as folder:
        trained(resolve_data(small), rank, case.world, Path(folder))
        gc.collect()
        before = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        trained(run, rank, case.world, Path(folder))
    peak = status("VmHWM") - before
    if dist.is_initialized():
        dist.destroy_process_group()
    return peak


def planned(case: Case) -> Memory:
    """What the planner says of the same run on the CPU."""
    run = case.run()
    precision = precision_of(run.system, torch.device("cpu"))
    layout = layout_of(run.system, run.system.strategy_at(case.world, False), case.world)
    share, micro = -(-run.global_batch // layout.data), run.system.micro_batch
    separable = run.objective.separable
    micro = min(micro or share, share)

    def build(ranks: Ranks) -> Any:
        system = replace(run.system, micro_batch=None if separable else micro)
        return build_objective(replace(run, system=system), precision.weights, ranks)

    seen = trace(
        build,
        reader_of(run, True).blank(),
        micro if separable else share,
        world=layout.data,
        compute=precision.compute,
        sharded=layout.kind.casts,
        recompute=run.system.recompute,
        tp=layout.tp,
    )
    return memory(
        parameters_of(build(Ranks())),
        layout,
        run.optim,
        Numbers.of(precision.weights, precision.compute),
        seen,
        -(-share // micro) if separable else 1,
        overlap=False,
    )


def ranks_of(name: str) -> list[int]:
    """Measured bytes of each rank of a case, in processes of its own."""
    with tempfile.TemporaryDirectory() as meet:
        world = CASES[name].world
        fixed = {
            "MALLOC_MMAP_THRESHOLD_": "65536",
            "MALLOC_TRIM_THRESHOLD_": "65536",
            "OMP_NUM_THREADS": "1",
            "WORLD_SIZE": str(world),
            "VTX_MEET": f"file://{meet}/store",
        }
        ranks = [
            subprocess.Popen(
                [sys.executable, __file__, "--rank", str(rank), "--only", name],
                env={**os.environ, **fixed, "RANK": str(rank)},
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(world)
        ]
        said = [p.communicate(timeout=600)[0] for p in ranks]
    if any(p.returncode for p in ranks):
        raise RuntimeError(f"{name}: a rank failed")
    return [int(out.splitlines()[-1]) for out in said]


def main() -> None:
    ask = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ask.add_argument("--only", nargs="*", choices=CASES, default=list(CASES))
    ask.add_argument("--rank", type=int)
    ask.add_argument("--again", action="store_true", help="plan anew what --out has measured")
    ask.add_argument("--out", default="benchmarks/results/planner.json")
    args = ask.parse_args()
    if args.rank is not None:
        torch.set_num_threads(1)
        print(measure(CASES[args.only[0]], args.rank))
        return
    before = {}
    if args.again:
        before = {r["run"]: r["measured"] for r in json.loads(Path(args.out).read_text())["runs"]}
    rows = []
    for name in args.only:
        plan, found = planned(CASES[name]), before.get(name) or max(ranks_of(name))
        apart = plan.gpu / found - 1
        rows.append(
            {
                "run": name,
                "planned": plan.gpu,
                "measured": found,
                "apart": apart,
                "kinds": plan.kinds,
            }
        )
        print(
            f"{name:20} planned {plan.gpu / MIB:7.1f} MiB, measured {found / MIB:7.1f} MiB, "
            f"{apart:+.1%}",
            flush=True,
        )
    worst = max(abs(r["apart"]) for r in rows)
    report = {"worst": worst, "bar": BAR, "met": worst <= BAR, "runs": rows}
    report["torch"] = torch.__version__
    print(f"worst {worst:.1%}, bar {BAR:.0%}")
    Path(args.out).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
