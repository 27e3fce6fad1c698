"""The line of a step for people: how well, how fast, how far. Standard library alone."""

import math
import time
from collections import deque
from collections.abc import Mapping

WIDTH = 80  # columns of a plain line
RECENT = 100  # steps that the time which is left is reckoned from
# what goes first where a line is too wide: a run's own numbers stand in metrics.jsonl too
LESS = ("lr", "norm", "memory", "epoch")


class Pace:
    """How long the rest of a run takes, as long for each step as the newest ones took, with all
    that came between them: evaluations, saves, waiting.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.ends = deque[tuple[int, float]](maxlen=RECENT)  # (step, seconds at its end)

    def left(self, step: int, now: float | None = None) -> float | None:
        """Seconds, when `step` ends now; None where one step alone has ended, which says nothing:
        the first of a start compiles and reads ahead.
        """
        self.ends.append((step, time.monotonic() if now is None else now))
        (first, began), (last, ended) = self.ends[0], self.ends[-1]
        return (self.steps - last) * (ended - began) / (last - first) if last > first else None


def step_line(
    values: Mapping[str, float],
    *,
    start: str = "",
    epoch: float | None = None,
    memory: int = 0,
    left: float | None = None,
    width: int = WIDTH,
) -> str:
    """`start` and the numbers of a step, in at most `width` columns: closer together, and then
    without the learning rate, and so on, where they would not fit.

    epoch: passes over the data so far; memory: the most bytes that were held at once, 0 where
    nobody knows; left: seconds.
    """
    words = {"start": start} if start else {}
    if values["samples_per_second"] or math.isfinite(values["loss"]):
        words |= {
            "loss": f"loss {values['loss']:.4f}",
            "lr": f"lr {values['lr']:.1e}",
            "norm": f"norm {values['grad_norm']:.3g}",
            "speed": f"{short_count(values['samples_per_second'])}/s",
        }
    else:
        words["loss"] = "no valid sample"
    if epoch is not None:
        words["epoch"] = f"ep {epoch:.2f}"
    if memory:
        words["memory"] = f"{memory / 2**30:.1f}G"
    if left is not None:
        words["left"] = f"ETA {duration(left)}"
    line = "  ".join(words.values())
    for less in ("", *LESS):
        if len(line) <= width:
            break
        words.pop(less, None)
        line = " ".join(words.values())
    return line


def short_count(value: float) -> str:
    """4.7, 524, 12.3k."""
    if value >= 9_999.5:
        return f"{value / 1000:.1f}k"
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"


def duration(seconds: float) -> str:
    """0:05, 2:05, 3:02:05, 4d03h."""
    whole = round(seconds)
    if whole >= 100 * 3600:
        return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
