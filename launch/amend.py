"""The work of `vtx amend`: a decision of a person, in a run folder. No torch."""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from vtx_scale.checkpoints.format import steps
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.objects import AnyPath, storage_of
from vtx_scale.launch.amendments import amended, plan
from vtx_scale.launch.decided import Decision, read
from vtx_scale.launch.override import WEIGHTS
from vtx_scale.launch.paths import checkpoints_of
from vtx_scale.launch.places import place_at
from vtx_scale.launch.run_folder import recipe_of
from vtx_scale.launch.tables import print_json
from vtx_scale.specs.run import Run
from vtx_scale.specs.walk import walk
from vtx_scale.trainer.lines import written
from vtx_scale.trainer.output import say, why

TRIES = 8  # numbers that another process took first


def run(args: argparse.Namespace) -> int:
    """The command."""
    folder = place_at(args.folder)
    change, *more = args.changes
    if more:
        raise UserError("One change is one decision: give the others in commands of their own.")
    key, equals, value = change.partition("=")
    if not equals:
        raise UserError(f"{change!r} is not key=value.")
    made, was, now = amend(folder, key, value, args.at)
    if args.json:
        print_json({"decision": made.name, **about(made), "was": was, "now": now})
    else:
        print(f"decisions/{made.name}.json: from step {made.step} on {key} is {now}, and was {was}")
    say(hint(folder, made))
    return 0


def hint(folder: AnyPath, made: Decision) -> str:
    """What a run that trains knows of it."""
    stop = f"'mkdir -p {folder}/control && touch {folder}/control/stop'"
    if not isinstance(folder, Path):  # no command that every machine has puts an object
        stop = f"an empty object at {folder}/control/stop, or SIGTERM to its job"
    if not steps(checkpoints_of(folder)):
        return (
            "a run that trains now does not see it, and has saved nothing yet to go back to: "
            f"before step {made.step} give it {stop}, and then the same 'vtx train'"
        )
    return (
        f"a run that trains now does not see it: {stop}, and then the same 'vtx train', take it "
        f"up; what it computes from step {made.step} on until then is computed again"
    )


def amend(folder: AnyPath, key: str, value: str, step: int) -> tuple[Decision, str, str]:
    """Write an amendment that holds from a step (1..N) on; it, the value before it and its own.

    Raises UserError for a folder that is no run, a field or value that cannot be, and a step that
    was computed already or does not come.
    """
    recipe = recipe_of(folder)
    check_step(folder, recipe, step)
    for _ in range(TRIES):
        before = read(folder)
        made = Decision(max((d.number for d in before), default=0) + 1, step, key=key, value=value)
        holds = plan(recipe, before).at(made.behind)
        was, now = shown(holds, key), shown(amended(holds, key, value), key)
        plan(recipe, [*before, made])  # what was decided for later steps must still be possible
        body = json.dumps({**about(made), "time": time.time()}, indent=1).encode() + b"\n"
        if storage_of(folder / "decisions").put_if_absent(f"{made.name}.json", body):
            return made, was, now
    raise UserError(f"{folder}/decisions is being written by others: try it again.")


def about(made: Decision) -> dict[str, Any]:
    """What stands in the object of an amendment."""
    return {"kind": made.kind, "step": made.step, "key": made.key, "value": made.value}


def check_step(folder: AnyPath, recipe: Run, step: int) -> None:
    """Raises UserError where a step is not beyond what was computed, or beyond the end, and where
    it cannot be read what was computed.
    """
    saved = max(steps(checkpoints_of(folder)), default=0)
    try:
        rows = written(folder / "metrics.jsonl")
    except OSError as e:
        raise UserError(
            f"{folder}/metrics.jsonl cannot be read ({why(e)}), so which steps are finished is not "
            "known: try again."
        ) from None
    done = max((n for row in rows if isinstance(n := row.get("step"), int)), default=0)
    if step <= max(saved, done, 0):
        raise UserError(
            f"--at {step}: the run has finished step {max(saved, done)} "
            f"(its newest checkpoint is of step {saved}): give a later one."
        )
    if step > recipe.steps:
        raise UserError(f"--at {step}: the run ends with step {recipe.steps}: give one up to that.")


def shown(recipe: Run, key: str) -> str:
    """A field's value as it is typed."""
    if key == WEIGHTS:
        return ",".join(f"{source.name}:{source.weight:g}" for source in recipe.data.sources)
    value = next((v for k, v, _ in walk(recipe) if k == key), "")
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, int | float) else str(value)
