"""Memory and step time of each optimizer beside AdamW's, on one ViT.

A step is the optimizer's alone, on gradients that are there; the share is of a whole step, with
forward and backward pass. Ratios are to AdamW in the same round, rounds take the kinds in turn.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

from vtx_scale.blocks.rules import initial_values
from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.launch.build import build_objective
from vtx_scale.launch.recipes import find
from vtx_scale.specs.run import Optimizer
from vtx_scale.strategies.single import Single
from vtx_scale.trainer.init import initialise
from vtx_scale.trainer.optim import optimizer_of

KINDS = {
    "adamw": Optimizer(),
    "adamw, moments in bfloat16": Optimizer(moments="bfloat16"),
    "muon": Optimizer(kind="muon"),
    "muon, moments in bfloat16": Optimizer(kind="muon", moments="bfloat16"),
    "adafactor": Optimizer(kind="adafactor"),
    "sgd": Optimizer(kind="sgd"),
    "lookahead": Optimizer(kind="lookahead"),
}


def prepared(kind: Optimizer, width: int, depth: int):
    run = find("vit_s16_imagenet", smoke=True)
    net = replace(run.objective.net, width=width, mlp=4 * width, heads=width // 64, depth=depth)
    run = replace(run, objective=replace(run.objective, net=net))
    objective = build_objective(run, torch.float32)
    strategy = Single(torch.device("cpu"))
    strategy.prepare(objective)
    initialise(objective, initial_values(objective), 0)
    return run, objective, optimizer_of(strategy.leaves(), kind)


def batch_of(run, rows: int) -> Batch:
    g = torch.Generator().manual_seed(0)
    side = run.objective.net.resolution
    data = {
        "image": torch.randint(0, 256, (rows, side, side, 3), generator=g, dtype=torch.uint8),
        "label": torch.arange(rows) % run.objective.net.classes,
    }
    at = torch.arange(rows)
    return Batch(data, torch.ones(rows, dtype=torch.bool), at, torch.zeros_like(at), at)


def timed(function) -> float:
    began = time.process_time()
    function()
    return time.process_time() - began


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--width", type=int, default=384)
    ask.add_argument("--depth", type=int, default=6)
    ask.add_argument("--rows", type=int, default=64)
    ask.add_argument("--rounds", type=int, default=7)
    ask.add_argument("--out", default="benchmarks/results/optimizers.json")
    args = ask.parse_args()
    torch.set_num_threads(1)
    parts = {name: prepared(kind, args.width, args.depth) for name, kind in KINDS.items()}
    run, objective, _ = parts["adamw"]
    batch = batch_of(run, args.rows)
    passes = [timed(lambda: objective(batch, 0)[0].backward()) for _ in range(3)]
    for _, net, _ in parts.values():
        for k, p in enumerate(net.parameters()):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(k))
    seconds: dict[str, list[float]] = {name: [] for name in KINDS}
    for _ in range(args.rounds + 1):
        for name, (_, _, optimizer) in parts.items():
            seconds[name].append(timed(optimizer.step))
    count = sum(p.numel() for p in objective.parameters())
    rows = []
    for name, (_, _, optimizer) in parts.items():
        state = [t for s in optimizer.state.values() for k, t in s.items() if k != "step"]
        ratios = [a / b for a, b in zip(seconds[name][1:], seconds["adamw"][1:], strict=True)]
        step = statistics.median(seconds[name][1:])
        rows.append(
            {
                "optimizer": name,
                "bytes_a_parameter": sum(t.numel() * t.element_size() for t in state) / count,
                "time_of_adamw": statistics.median(ratios),
                "share_of_a_step": step / (step + statistics.median(passes)),
            }
        )
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in rows[-1].items()})
    out = {"parameters": count, "rows": args.rows, "rounds": args.rounds, "optimizers": rows}
    Path(args.out).write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
