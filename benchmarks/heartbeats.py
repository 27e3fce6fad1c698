"""What it costs to know where a rank stands: phases, heartbeats and the goodput ledger, as a share
of a step of 50 ms.

    python benchmarks/heartbeats.py [--steps 20000] [--seconds 20]
                                    [--out benchmarks/results/heartbeats.json]

One process, in seconds of its CPU, which others on the machine do not lengthen as they do those of
a clock. A step enters `WITHIN` phases and `COLLECTIVES` collectives (as ddp with a dozen buckets
does) and is added to its window of `stragglers`; threads beat once a second and add a line every
ten, here ten times as often, while the main thread sleeps.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

import torch

from vtx_scale.distributed.phases import Phases
from vtx_scale.distributed.ranks import Ranks
from vtx_scale.launch.beats import Beats, Heart
from vtx_scale.trainer.goodput import Times
from vtx_scale.trainer.output import Ledger
from vtx_scale.trainer.stragglers import Stragglers

WITHIN, COLLECTIVES = 2, 16
STEP = 0.05  # seconds
OFTEN = 10  # times as often as in a run


class Alone(Ranks):
    """As one of two ranks that need nobody to answer."""

    world = 2


def in_a_step(phases: Phases, steps: int, folder: Path) -> float:
    """CPU seconds of what the main thread does for a step."""
    compared = Stragglers(Alone(), torch.device("cpu"), Ledger(folder), print)
    compared.slowness.window = lambda seconds: {}  # type: ignore[method-assign]
    began = time.process_time()
    for step in range(steps):
        compared.begin()
        for _ in range(WITHIN):
            with phases.within("step"):
                pass
        for _ in range(COLLECTIVES):
            with phases.collective():
                pass
        phases.step = step
        compared.add(step, STEP, 0.0)
    return (time.process_time() - began) / steps


def in_threads(phases: Phases, seconds: float, folder: Path) -> float:
    """CPU seconds of heartbeats and ledger in a second of a run."""
    beats = Beats()
    os.environ |= beats.environment
    try:
        times, heart = Times(phases, every=10.0 / OFTEN), Heart(0, phases, every=1.0 / OFTEN)
        times.begin(folder, "1", 0)
        time.sleep(1)
        began, clock = time.process_time(), time.monotonic()
        time.sleep(seconds)
        spent = (time.process_time() - began) / (time.monotonic() - clock) / OFTEN
        heart.close()
        times.close(0)
    finally:
        beats.close()
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        phases = Phases()
        step = in_a_step(phases, args.steps, Path(folder))
        threads = in_threads(phases, args.seconds, Path(folder))
    body = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "microseconds a step": round(1e6 * step, 1),
        "microseconds a second, threads": round(1e6 * threads, 1),
        "share of a step of 50 ms": round((step + threads * STEP) / STEP, 6),
    }
    print(json.dumps(body, indent=1))
    if args.out:
        args.out.write_text(json.dumps(body, indent=1) + "\n")


if __name__ == "__main__":
    main()
