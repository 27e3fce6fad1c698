"""Real runs in real processes, and what they left behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from vtx_scale.checkpoints.read import Tensors, newest


def vtx(*arguments: object, env: dict[str, str] | None = None, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """The command as a user would type it."""
    clean = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    return subprocess.run([sys.executable, "-m", "launch.cli", *map(str, arguments)], text=True, capture_output=True,
                          timeout=timeout, env={**clean, **(env or {})})


def train(folder: Path, *keys: str, env: dict[str, str] | None = None, recipe: str = "clip_vit_b32",
          code: int = 0) -> subprocess.CompletedProcess[str]:
    """A smoke run that must end with `code` and never with a traceback."""
    done = vtx("train", recipe, "--smoke", "--run", folder, "system.workers=0", *keys, env=env)
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    rows = lines(folder / "metrics.jsonl")
    assert [r["step"] for r in rows] == list(range(1, len(rows) + 1)), "a step is missing or stands twice"
    return [r["loss"] for r in rows]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the newest checkpoint, optimizer moments included."""
    found = newest(folder / "checkpoints")
    assert found is not None
    stored = Tensors(*found)
    return {k: stored.whole(k) for k in stored.keys()}


def assert_same_bits(a: Path, b: Path) -> None:
    one, two = tensors(a), tensors(b)
    assert one.keys() == two.keys()
    assert any(k.startswith("exp_avg_sq/") for k in one)
    different = [k for k in one if not torch.equal(one[k], two[k])]
    assert not different, different
