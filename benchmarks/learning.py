"""Does an objective learn?

A small training on CIFAR-10, beside the same network untrained and beside raw pixels.

    python benchmarks/learning.py pixels --data FOLDER
    python benchmarks/learning.py colours --data FOLDER objective.palette=FILE
    python benchmarks/learning.py table
    python benchmarks/learning.py RECIPE --data FOLDER [--seed 0] [--runs FOLDER] [key=value ...]

RECIPE is one of launch/recipes/cifar10.py, "pixels" the comparison with raw pixels, "colours" how
well counts foretell iGPT's colours, "table" what is there. FOLDER holds train-*.tar and test-*.tar.
One training a command; the same command goes on where it was stopped. Readouts and their penalty
are fixed beforehand: weighted k-NN (20 neighbours), logistic regression with an L2 of 1e-3; raw
pixels alone get the best of four penalties, chosen on the test pictures, which favours them. Writes
benchmarks/results/learning/RECIPE-SEED.json.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from vtx_scale.blocks.rules import initial_values
from vtx_scale.data_pipeline.loader import Loader
from vtx_scale.distributed.ranks import Ranks
from vtx_scale.evaluators.features import extract
from vtx_scale.evaluators.knn import knn
from vtx_scale.evaluators.linear import linear
from vtx_scale.launch import build, override, recipes
from vtx_scale.launch.datasets import open_data
from vtx_scale.launch.evaluate import scores
from vtx_scale.launch.resolve import resolve_data
from vtx_scale.strategies.single import Single
from vtx_scale.trainer.init import initialise

RESULTS = Path(__file__).parent / "results" / "learning"
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
# keys that name what lies on this machine
FILES = ("objective.teacher_from=", "objective.palette=")
CURVE = 12  # points of the training's curve that are kept


def untrained(run, names=None):
    """The recipe's network and seed with initial values, at the same readouts or `names`."""
    objective = build.build_objective(run, torch.float32)
    Single(torch.device("cpu")).prepare(objective)
    initialise(objective, initial_values(objective), run.seed)
    others = [e.name for e in run.evaluate if e.name not in ("accuracy", "completions")]
    return scores(run, objective, names or others)


def pixels(run):
    """Raw pixels, and means of 4 x 4 boxes, at the same readouts."""
    scores = {}
    for name, shrink in (("pixels", 1), ("boxes", 4)):

        def probe(x, shrink=shrink):
            x = torch.as_tensor(x).float().permute(0, 3, 1, 2) / 255
            return torch.nn.functional.avg_pool2d(x, shrink).flatten(1) - 0.5

        parts = []
        for train in (True, False):
            batches, count = build.eval_batches(run, open_data(run, train))
            parts.append(extract(probe, Loader(batches, stop=count), Ranks()))
        best = max(
            (linear(*parts, None, Ranks(), penalties=(p,)) for p in PENALTIES),
            key=lambda r: r["top1"],
        )
        scores[name] = {"knn": knn(*parts, None, Ranks()), "linear": best}
    return scores


def colours(run):
    """Nats of a test pixel's colour by counts of the training pictures:
    alone, and after its left neighbour in raster order.

    The neighbours' counts are smoothed by the colours'; how much is chosen on the test pictures,
    which favours them.
    """
    objective, K = build.build_objective(run, torch.float32), run.objective.net.colours
    one, two, tests = torch.zeros(K), torch.zeros(K, K), []
    for train in (True, False):
        batches, count = build.eval_batches(run, open_data(run, train))
        for batch in Loader(batches, stop=count):
            tokens = objective.palette.tokens(batch["image"])[batch.valid]
            if train:
                one += torch.bincount(tokens.flatten(), minlength=K)
                two += torch.bincount(
                    (tokens[:, :-1] * K + tokens[:, 1:]).flatten(), minlength=K * K
                ).view(K, K)
            else:
                tests.append(tokens)
    tokens, share = torch.cat(tests), (one + 1) / (one + 1).sum()
    first = -share.log()[tokens]
    after = []
    for weight in (0.1, 1.0, 10.0, 100.0):
        table = (two + weight * K * share) / (two + weight * K * share).sum(1, keepdim=True)
        nats = torch.cat([first[:, :1], -table.log()[tokens[:, :-1], tokens[:, 1:]]], 1)
        after.append(nats.mean().item())
    return {
        "colours": K,
        "side": run.objective.net.side,
        "unigram": first.mean().item(),
        "bigram": min(after),
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe")
    parser.add_argument("--data")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("keys", nargs="*")
    args = parser.parse_intermixed_args()
    if args.recipe == "table":
        return table()
    if not args.data:
        parser.error("give --data FOLDER, with train-*.tar and test-*.tar")
    torch.set_num_threads(1)
    folder = args.runs / f"{args.recipe}-{args.seed}"
    keys = [
        f"data.shards={args.data}/train-*.tar",
        f"data.val_shards={args.data}/test-*.tar",
        f"seed={args.seed}",
        *args.keys,
    ]
    if args.recipe == "pixels":
        return write(
            "pixels", pixels(resolve_data(override.override(recipes.find("cifar10_vit"), keys)))
        )
    if args.recipe == "colours":
        return write(
            "colours", colours(resolve_data(override.override(recipes.find("cifar10_igpt"), keys)))
        )
    began = time.perf_counter()
    subprocess.run(
        [
            sys.executable,
            "-m",
            "vtx_scale.launch.cli",
            "train",
            args.recipe,
            "--run",
            str(folder),
            *keys,
        ],
        check=True,
    )
    run = resolve_data(override.override(recipes.find(args.recipe), keys))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = (
        "step",
        "loss",
        "accuracy",
        "teacher_accuracy",
        "distillation",
        "teacher_entropy",
        "marginal_entropy",
    )
    points = sorted(
        {round(i * (len(rows) - 1) / (CURVE - 1)) for i in range(CURVE)} | {min(99, len(rows) - 1)}
    )
    trained = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    result = {
        "recipe": args.recipe,
        "seed": args.seed,
        "keys": [k for k in args.keys if not k.startswith(FILES)],
        "steps": run.steps,
        "batch": run.global_batch,
        "training_seconds": round(sum(r["seconds"] for r in rows), 1),
        "seconds": round(time.perf_counter() - began, 1),
        "curve": [{k: round(rows[i][k], 4) for k in kept if k in rows[i]} for i in points],
        "trained": {
            r["name"]: {k: v for k, v in r.items() if k not in ("step", "name")} for r in trained
        },
        "untrained": untrained(run),
    }
    write(f"{args.recipe}-{args.seed}", result)


def table():
    """Markdown: percentages and nats of every seed, trained beside untrained."""
    rows = {}
    for path in sorted(RESULTS.glob("*-*.json")):
        result = json.loads(path.read_text())
        for name, key in (
            ("accuracy", "top1"),
            ("loss", "loss"),
            ("knn", "top1@20"),
            ("linear", "top1"),
        ):
            for when in ("trained", "untrained"):
                if name in result[when]:
                    value = result[when][name][key]
                    rows.setdefault((result["recipe"], name), {}).setdefault(when, []).append(
                        f"{value:.3f}" if name == "loss" else f"{100 * value:.1f}"
                    )
    print("| recipe | readout | trained, a seed each | untrained |\n|---|---|---|---|")
    for (recipe, name), found in rows.items():
        print(
            f"| {recipe} | {name} | {', '.join(found['trained'])} | "
            f"{', '.join(found.get('untrained', []))} |"
        )
    whole = json.loads((RESULTS / "pixels.json").read_text())
    for kind in ("pixels", "boxes"):
        print(f"| {kind} | knn | {100 * whole[kind]['knn']['top1@20']:.1f} | |")
        print(f"| {kind} | linear | {100 * whole[kind]['linear']['top1']:.1f} | |")


def write(name, result):
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k != "curve"}))


if __name__ == "__main__":
    main()
