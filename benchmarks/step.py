"""The trainer's step beside a bare loop of the same model, optimizer and batches,
interleaved in one run.

    python benchmarks/step.py [--pairs 20] [--steps 8] [--width 256] [--device cpu]
                              [--out benchmarks/results/step.json]

The trainer runs its real loop (counting, verdict, norm, metrics, control) without saving; the bare
loop is forward, backward, clip, step. The overhead is the median over pairs of trainer / bare - 1.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from vtx_scale.blocks.rules import initial_values
from vtx_scale.checkpoints.write import Writer
from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.data_pipeline.storage import Folder
from vtx_scale.launch.build import build_objective
from vtx_scale.launch.recipes.clip import clip_vit_b32_smoke
from vtx_scale.strategies.apply import apply
from vtx_scale.strategies.single import Single
from vtx_scale.trainer.control import Control
from vtx_scale.trainer.init import initialise
from vtx_scale.trainer.log import Log
from vtx_scale.trainer.loop import Trainer
from vtx_scale.trainer.optim import optimizer_of
from vtx_scale.trainer.output import Ledger
from vtx_scale.trainer.precision import precision_of


class Given:
    """The same batch at every step: what the loader costs is another benchmark's question."""

    end = 0  # its place in an order

    def __init__(self, batch):
        self.batch = batch

    def next(self):
        return self.batch


class Silent(Writer):
    """No checkpoint: a save is another benchmark's question."""

    def save(self, step, slices, state):
        pass


def parts(run, device):
    precision = precision_of(run.system, device)
    strategy = Single(device)
    objective = build_objective(run, precision.weights)
    apply(objective, strategy, run.system)
    initialise(objective, initial_values(objective), run.seed)
    return (
        precision,
        strategy,
        objective,
        optimizer_of(strategy.leaves(), run.optim),
    )


def sync(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    ask = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ask.add_argument("--pairs", type=int, default=20)
    ask.add_argument("--steps", type=int, default=8)
    ask.add_argument("--width", type=int, default=256)
    ask.add_argument("--batch", type=int, default=32)
    ask.add_argument("--device", default="cpu")
    ask.add_argument("--out", default="benchmarks/results/step.json")
    args = ask.parse_args()
    torch.set_num_threads(1)
    device = torch.device(args.device)
    run = clip_vit_b32_smoke()
    image = replace(
        run.objective.image,
        width=args.width,
        mlp=4 * args.width,
        depth=6,
        heads=args.width // 32,
        resolution=64,
    )
    run = replace(
        run,
        objective=replace(run.objective, image=image),
        global_batch=args.batch,
        evaluate=(),
        steps=10**9,
        optim=replace(run.optim, clip=1.0),
    )
    g = torch.Generator().manual_seed(0)
    n, text = args.batch, run.objective.text
    tokens = torch.randint(1, 200, (n, text.context), generator=g, dtype=torch.int32)
    tokens[:, -1] = text.vocab - 1
    batch = Batch(
        {
            "image": torch.randint(0, 256, (n, 64, 64, 3), generator=g, dtype=torch.uint8),
            "tokens": tokens,
        },
        torch.ones(n, dtype=torch.bool),
        torch.arange(n),
        torch.zeros(n, dtype=torch.int64),
        torch.arange(n),
    ).to(device)

    folder = Path(tempfile.mkdtemp(prefix="vtx-bench-"))
    precision, strategy, objective, optimizer = parts(run, device)
    log = Log(folder, run.steps, device=device)
    trainer = Trainer(
        run,
        objective,
        strategy,
        optimizer,
        Given(batch),
        Silent(Folder(folder / "c"), 0, 1, "a", 1),
        precision,
        Control(folder, 0),
        Ledger(folder),
        log,
        dict,
    )

    def ours(steps: int) -> None:
        trainer.run = replace(run, system=replace(run.system, leave_after=steps))
        trainer.train()

    bare_precision, bare_strategy, bare, bare_optimizer = parts(run, device)

    def plain(steps: int) -> None:
        for _ in range(steps):
            with bare_precision.cast(device):
                loss, _ = bare(batch, 0)
            (loss / n).backward()
            torch.nn.utils.clip_grad_norm_(bare.parameters(), 1.0)
            bare_optimizer.step()
            bare_optimizer.zero_grad(set_to_none=True)
            bare_strategy.clamp()

    def timed(f) -> float:
        sync(device)
        began = time.perf_counter() if device.type == "cuda" else time.process_time()
        f(args.steps)
        sync(device)
        return (
            (time.perf_counter() if device.type == "cuda" else time.process_time()) - began
        ) / args.steps

    ours(2), plain(2)
    pairs = []
    for i in range(args.pairs):
        order = (ours, plain) if i % 2 else (plain, ours)
        took = {f.__name__: timed(f) for f in order}
        pairs.append((took["ours"], took["plain"]))
    ratios = [a / b for a, b in pairs]
    report = {
        "step_seconds": statistics.median(a for a, _ in pairs),
        "bare_seconds": statistics.median(b for _, b in pairs),
        "overhead_median": statistics.median(ratios) - 1,
        "overhead_min": min(ratios) - 1,
        "overhead_max": max(ratios) - 1,
        "pairs": len(pairs),
        "device": str(device),
        "target": 0.02,
        "torch": torch.__version__,
    }
    log.close()
    print(json.dumps(report, indent=1))
    Path(args.out).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
