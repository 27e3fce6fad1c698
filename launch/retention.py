"""Which checkpoints stay beside the newest."""

import contextlib
import math
import sys
from collections.abc import Callable, Collection
from fnmatch import fnmatchcase

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.objects import AnyPath
from vtx_scale.launch.decided import Decision, read
from vtx_scale.launch.evaluate import evaluator
from vtx_scale.specs.run import Run
from vtx_scale.trainer.lines import written


def stays(
    run: Run, folder: AnyPath, known: Collection[str] | None = None
) -> Callable[[list[int]], set[int]]:
    """Takes the steps of the checkpoints that are there, and returns those that stay: multiples of
    `checkpoint.keep_every`, of those that `checkpoint.best` has a number for the best one, the
    newest of several, what the guard may have to go back to, and what the next start goes back to
    for decisions that came on the way.

    known: names of the decisions that a run which trains follows; None where none trains.

    What is returned raises OSError where the numbers cannot be read: then nothing may be removed.

    Raises UserError where the evaluator does not say which way its number is better.
    """
    every, best = run.checkpoint.keep_every, run.checkpoint.best
    name, _, number = best.rpartition("/")
    sign = direction(name, number) if best else 0
    new: list[Decision] = []

    def chosen(there: list[int]) -> set[int]:
        found = {step for step in there if every and step % every == 0}
        scores = scores_of(folder, name, number) if best else {}
        scored = [step for step in there if step in scores]
        if scored:
            found.add(max(scored, key=lambda step: (sign * scores[step], step)))
        if known is not None:
            # one that cannot be read is refused by the next start: those read before still hold
            with contextlib.suppress(UserError):
                new[:] = read(folder, known)
            found |= before_decisions(there, new)
        return found | (before_window(there, run.guard.window) if run.guard.factor else set())

    return chosen


def before_decisions(there: list[int], decisions: list[Decision]) -> set[int]:
    """The newest step of those that each decision leaves as they are."""
    left = [[step for step in there if step <= d.behind] for d in decisions]
    return {max(steps) for steps in left if steps}


def before_window(there: list[int], window: int) -> set[int]:
    """Few steps of which one always lies before the last `window` steps, and not far before them:
    the newest that does now; and the first of each `window` steps of the last three times so many,
    for later, and for a run that went back and has to go back further.
    """
    first = {step // window: step for step in sorted(there, reverse=True)}
    last, newest = max(first, default=0), max(there, default=0)
    now = [step for step in there if step <= newest - window]
    return {step for part, step in first.items() if part > last - 3} | set(now and [max(now)])


def direction(name: str, number: str, key: str = "checkpoint.best") -> int:
    """1 where more of an evaluator's number is better, -1 where less is. key: that asks.

    Raises UserError where its module does not say.
    """
    module = sys.modules[evaluator(name).__module__]
    higher, lower = getattr(module, "HIGHER", ()), getattr(module, "LOWER", ())
    for patterns, sign in ((higher, 1), (lower, -1)):
        if any(fnmatchcase(number, pattern) for pattern in patterns):
            return sign
    known = ", ".join((*higher, *lower)) or "none of its numbers"
    raise UserError(
        f"{key}={name}/{number}: {name} does not say which way {number} is better, "
        f"but of {known}; HIGHER and LOWER in its module name them."
    )


def scores_of(folder: AnyPath, name: str, number: str) -> dict[int, float]:
    """What evaluations.jsonl has of a number, by step; what is no number has none.

    Raises OSError where it cannot be read.
    """
    found = {}
    for row in written(folder / "evaluations.jsonl"):
        value = row.get(number)
        if row.get("name") == name and isinstance(value, int | float) and math.isfinite(value):
            found[int(row["step"])] = float(value)
    return found
