"""What the small recipes reach on some thousand pictures of one's own, beside what costs nothing.

    python benchmarks/own_data.py FOLDER [--recipes vit_small ...] [--seeds 0 1 2] [--long]
    python benchmarks/own_data.py table

FOLDER is what docs/own_data.md makes: `train/` and `val/`, shards of pictures with labels and, for
`clip_small`, captions. Beside each training stand the same network untrained, at the same readouts,
and raw pixels: weighted k-NN (20 neighbours) and logistic regression. Pixels get the best of four
penalties, chosen on the validation pictures, which favours them.

The keys are those of the page, for pictures of 32 pixels and ten or twenty minutes on one core;
--long takes the recipes' own epochs and augmentation. The same command goes on where it was
stopped, and adds its rows to benchmarks/results/own_data.json.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from learning import pixels, untrained

from vtx_scale.launch import override, recipes
from vtx_scale.launch.evaluate import evaluate
from vtx_scale.launch.resolve import resolve_data

RESULTS = Path(__file__).parent / "results" / "own_data.json"
# of 32 pixels, as CIFAR-10's are
SIZE = {
    "vit_small": ("objective.net.resolution=32",),
    "dino_small": ("objective.net.resolution=32", "objective.crops.local_size=16"),
    "clip_small": ("objective.image.resolution=32", "objective.text.context=32"),
}
# minutes: strong augmentation has no time to pay
SHORT = {
    "vit_small": (
        "epochs=20",
        "schedule.warmup=50",
        "data.augment.randaug_layers=0",
        "data.augment.mixup=0",
    ),
    "dino_small": ("epochs=10", "schedule.warmup=50"),
    "clip_small": ("epochs=20", "schedule.warmup=50", "global_batch=64"),
}
# of the training itself; the other two are of its features
OWN = {"vit_small": ["accuracy"], "dino_small": [], "clip_small": ["zero_shot"]}
READOUTS = {"knn": "top1@20", "linear": "top1", "accuracy": "top1", "zero_shot": "top1"}


def of(recipe: str, data: list[str], keys: list[str]):
    """The Run of a recipe with these keys, its evaluations the readouts of features."""
    run = override.override(recipes.find(recipe), [*data, *keys, "evaluate.0.name=knn"])
    return resolve_data(run)


def percent(scores: dict) -> dict[str, float]:
    """Name of a readout -> per cent."""
    return {name: round(100 * scores[name][READOUTS[name]], 1) for name in scores}


def measured(recipe: str, seed: int, data: list[str], runs: Path, long: bool) -> dict:
    """One training beside its network untrained."""
    folder = runs / f"{recipe}-{seed}"
    keys = [*SIZE[recipe], *(() if long else SHORT[recipe]), f"seed={seed}"]
    command = [sys.executable, "-m", "vtx_scale", "train", recipe, "--run", str(folder)]
    score = [f"evaluate.0.name={name}" for name in OWN[recipe]]
    subprocess.run([*command, *data, *keys, *score], check=True)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = ["knn", "linear", *OWN[recipe]]
    return {
        "recipe": recipe,
        "seed": seed,
        "keys": keys,
        "steps": rows[-1]["step"],
        "seconds": round(sum(row["seconds"] for row in rows)),
        "trained": percent(dict(evaluate(folder, names))),
        "untrained": percent(untrained(of(recipe, data, keys), ["knn", "linear"])),
    }


def table(found: dict) -> None:
    """Markdown."""
    print("| recipe | readout | trained, a seed each | untrained |\n|---|---|---|---|")
    for recipe in SIZE:
        rows = [row for row in found["rows"] if row["recipe"] == recipe]
        for name in dict.fromkeys(name for row in rows for name in row["trained"]):
            both = [
                ", ".join(f"{row[when][name]:.1f}" for row in rows if name in row[when])
                for when in ("trained", "untrained")
            ]
            print(f"| {recipe} | {name} | {both[0]} | {both[1]} |")
    for kind, scores in found.get("pixels", {}).items():
        for name, value in scores.items():
            print(f"| {kind} | {name} | {value:.1f} | |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("--recipes", nargs="+", choices=SIZE, default=list(SIZE))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--long", action="store_true")
    args = parser.parse_args()
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    if args.data == "table":
        return table(found)
    torch.set_num_threads(1)
    data = [f"data.shards={args.data}/train", f"data.val_shards={args.data}/val"]
    if "pixels" not in found:
        scores = pixels(of("vit_small", data, [*SIZE["vit_small"]]))
        found["pixels"] = {kind: percent(scores[kind]) for kind in ("pixels", "boxes")}
        keep(found)
    for recipe in args.recipes:
        for seed in args.seeds:
            row = measured(recipe, seed, data, args.runs, args.long)
            others = [r for r in found["rows"] if (r["recipe"], r["keys"]) != (recipe, row["keys"])]
            found["rows"] = sorted([*others, row], key=lambda r: (r["recipe"], r["seed"]))
            keep(found)
    table(found)


def keep(found: dict) -> None:
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
