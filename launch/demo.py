"""The whole road in minutes on two cores: train, kill, resume, score, export,
and what came of it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
import transformers

from vtx_scale.checkpoints.read import newest
from vtx_scale.data_pipeline.paths import local_path
from vtx_scale.data_pipeline.text import tokenizer
from vtx_scale.data_pipeline.tools.digits import make_digits
from vtx_scale.interop import export
from vtx_scale.interop.clip import MEAN, STD
from vtx_scale.launch import recipes
from vtx_scale.launch.build import eval_batches
from vtx_scale.launch.datasets import open_data
from vtx_scale.launch.open_run import OpenRun, open_run
from vtx_scale.launch.paths import checkpoints_of
from vtx_scale.launch.tables import print_table
from vtx_scale.specs.clip import ClipConfig

WORLD, WANTED = 2, 0.90


def run(args: argparse.Namespace) -> int:
    folder = local_path(args.folder, "--run ").resolve()
    steps = recipes.find("clip_digits").steps
    shards = folder / "digits"
    if not (shards / "classes.txt").exists():  # written last
        heading("1,797 handwritten digits become captioned shards")
        make_digits(shards)
    heading(f"A run that nobody disturbs: {WORLD} processes, FSDP2, {steps} steps")
    calm = train(folder / "undisturbed", shards)
    heading(f"The same run; process 1 is killed by SIGKILL in step {steps // 2 + 7}")
    (folder / "killed").mkdir(exist_ok=True)
    struck = train(
        folder / "disturbed",
        shards,
        VTX_KILL=f"backward-{steps // 2 + 7}:1",
        VTX_KILL_ONCE=str(folder / "killed"),
    )
    if calm or struck:
        return calm or struck
    heading("Export to transformers, and the same pictures through both")

    opened, exported = open_run(folder / "disturbed"), folder / "transformers"
    if not exported.exists():
        export(opened.model, "transformers", exported)
    error = difference(opened, exported, shards)
    return report(folder, error)


def heading(line: str) -> None:
    print(f"\n{line}", flush=True)


def train(folder: Path, shards: Path, **env: str) -> int:
    """The command that a user would type, in a process of its own."""
    keys = [
        f"system.world={WORLD}",
        "system.strategy=fsdp",
        f"data.shards={shards / 'train'}",
        f"data.val_shards={shards / 'val'}",
    ]
    return subprocess.call(
        [
            sys.executable,
            "-m",
            "vtx_scale.launch.cli",
            "train",
            "clip_digits",
            "--run",
            str(folder),
            *keys,
        ],
        env={**os.environ, **env},
    )


def difference(opened: OpenRun, exported: Path, shards: Path) -> float:
    """The largest difference of image and text features here and in transformers,
    relative to the largest feature.
    """
    recipe, spec = opened.recipe, cast(ClipConfig, opened.recipe.objective)
    data = open_data(recipe, False)
    assert data is not None
    batches, _ = eval_batches(recipe, data)
    pixels = batches[0]["data"]["image"]
    tokens = torch.from_numpy(
        tokenizer(recipe.data.tokenizer).encode_all(
            [f"a handwritten {c}" for c in data.classes or []], spec.text.context
        )
    )
    silence: Callable[[], None] = transformers.utils.logging.disable_progress_bar
    silence()
    model: Any = transformers.CLIPModel.from_pretrained(exported)
    model.eval()
    with torch.no_grad():
        normal = ((pixels / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)
        outputs = model(input_ids=tokens.long(), pixel_values=normal)
    pairs = (
        (opened.probes["encode_image"](pixels), outputs.image_embeds),
        (opened.probes["encode_text"](tokens), outputs.text_embeds),
    )
    worst: float = max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)
    return worst


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def report(folder: Path, error: float) -> int:
    """The table, and 0 where everything is as it should be."""
    calm, struck = (
        rows(folder / "undisturbed" / "metrics.jsonl"),
        rows(folder / "disturbed" / "metrics.jsonl"),
    )
    restart = next(r for r in rows(folder / "disturbed" / "ledger.jsonl") if r["kind"] == "restart")
    killed = recovered_step(folder)
    recovery = next(r["time"] for r in struck if r["step"] == killed) - restart["time"]
    last = rows(folder / "disturbed" / "evaluations.jsonl")[-1]
    same_curve = [r["loss"] for r in calm] == [r["loss"] for r in struck]
    stored = [newest(checkpoints_of(folder / name)) for name in ("undisturbed", "disturbed")]
    same_weights = len({digests(found) for found in stored}) == 1
    checks = {
        "throughput": (
            (
                f"{statistics.median(r['samples_per_second'] for r in calm):,.0f} samples/s "
                f"on {WORLD} processes"
            ),
            True,
        ),
        "zero-shot on held-out digits": (
            f"{last['top1']:.1%} of {last['samples']} (wanted: {WANTED:.0%})",
            last["top1"] >= WANTED,
        ),
        f"recovery after the kill in step {killed}": (
            f"{recovery:.1f} s to be there again, from the checkpoint of step {restart['step']}",
            True,
        ),
        "curve of the killed run": (
            f"{'equal' if same_curve else 'NOT equal'} in all {len(calm)} losses",
            same_curve,
        ),
        "weights and optimizer state": (
            "equal to the bit" if same_weights else "NOT equal",
            same_weights,
        ),
        "transformers": (f"features differ by {error:.1e} of the largest", error <= 1e-5),
    }
    heading("What came of it")
    print_table(
        [
            {"": label, "found": text, "well": "yes" if well else "NO"}
            for label, (text, well) in checks.items()
        ]
    )
    print(
        f"\nLook at the curves:  tensorboard --logdir {folder}\n"
        f"Exported weights:    {folder / 'transformers'}"
    )
    return int(not all(well for _, well in checks.values()))


def recovered_step(folder: Path) -> int:
    """The step in which the kill struck, by the mark that it left."""
    return int(next((folder / "killed").glob("backward-*")).name.split("-")[1].split(".")[0])


def digests(manifest: dict[str, Any] | None) -> tuple[str, ...]:
    """Of the data of each rank."""
    assert manifest is not None
    return tuple(
        manifest["files"][name]["sha256"]
        for name in sorted(manifest["files"])
        if name.startswith("data-")
    )
