"""Run folders as a training leaves them, without the training: the writers are the real ones."""

import json
import math
import random
from pathlib import Path

from vtx_scale.launch import override, recipes
from vtx_scale.trainer.output import entry_lines, json_line, stamped


def recipe(steps: int, **changes: object) -> dict:
    body = override.to_dict(recipes.find("clip_vit_b32", smoke=True))
    return {**body, "steps": steps, **changes}


def row(step: int, seed: int = 0, **more: float) -> bytes:
    """A line of metrics.jsonl."""
    noise = random.Random(1_000_003 * seed + step).random()
    values = {
        "step": step,
        "samples": 16 * step,
        "loss": 3 / (1 + step / 50) + 0.2 * noise,
        "lr": 1e-3 * (1 + math.cos(step / 100_000)),
        "grad_norm": 1 + noise,
        "samples_per_second": 500 + 50 * noise,
        "data_wait": 0.003 * noise,
        "seconds": 0.03,
        "logit_scale": 14.3,
        "mfu": 0.3 + 0.1 * noise,
        "time": 1.7e9 + 0.04 * step,
    }
    return json_line({**values, **more}) + b"\n"


def written_run(
    folder: Path,
    steps: int = 120,
    total: int = 200,
    ledger: tuple[dict, ...] = (),
    scores: tuple[dict, ...] = (),
    log: tuple[str, ...] = (),
    seed: int = 0,
    **about: object,
) -> Path:
    """A run of `steps` of `total` steps."""
    folder.mkdir(parents=True, exist_ok=True)
    body = {"recipe": recipe(total), "hash": "h" * 16, "data": "d" * 32, "forks": [], **about}
    (folder / "run.json").write_text(json.dumps(body))
    (folder / "metrics.jsonl").write_bytes(b"".join(row(s + 1, seed) for s in range(steps)))
    lines = [line for entry in ledger for line in entry_lines(entry)]
    (folder / "ledger.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    body = b"".join(json_line(score) + b"\n" for score in scores)
    (folder / "evaluations.jsonl").write_bytes(body)
    (folder / "log.txt").write_bytes(b"".join(stamped(line) + b"\n" for line in log))
    return folder


def files_of(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Name -> (content, time of the last change in ns) of all that lies in a folder."""
    return {
        str(path.relative_to(folder)): (
            path.read_bytes() if path.is_file() else b"",
            path.stat().st_mtime_ns,
        )
        for path in sorted(folder.rglob("*"))
    }
