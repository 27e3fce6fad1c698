"""`vtx worker --run URI`: what a job of a cluster is, on the node where Ray has started it.

All it needs stands in the run folder. Where a launcher of ranks has started it (srun, torchrun) it
is one of them.
"""

import argparse
import contextlib
import json
import os
import time

from vtx_scale.checkpoints.format import steps
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.objects import AnyPath
from vtx_scale.launch import attempts, inputs, override, recipes, run_folder
from vtx_scale.launch.attempts import Attempt, End
from vtx_scale.launch.paths import checkpoints_of
from vtx_scale.launch.places import place_at
from vtx_scale.launch.submit import submit
from vtx_scale.launch.tail import Lines
from vtx_scale.launch.train import train
from vtx_scale.specs.run import Run
from vtx_scale.trainer.lines import parsed
from vtx_scale.trainer.output import code_of, say, sentence


def run(args: argparse.Namespace) -> int:
    """Train what the run folder says; the exit code. Raises UserError."""
    folder = place_at(args.run_folder).absolute()
    attempt = mine(attempts.newest(folder))
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return train(recipe_at(folder, attempt), folder, debug=args.debug)
    if attempt is None:
        return submit(recipe_at(folder, None), folder, "auto", debug=args.debug)
    end = End(1, "the job's driver was ended")
    try:
        code = driven(args, attempt)
        end = End(code, given_up(folder, attempt.time) if code == 1 else "")
        return code
    except UserError as e:
        end = End(2, str(e))
        raise
    except OSError as e:
        end = End(code_of(e), sentence(e))
        raise
    except Exception as e:
        end = End(1, f"{type(e).__name__}: {e}")
        raise
    finally:
        with contextlib.suppress(OSError):  # the exit code says it to Ray
            at = max(steps(checkpoints_of(folder)), default=0)
            attempts.write_end(folder, attempt.number, End(end.code, end.text, at, time.time()))


def given_up(folder: AnyPath, since: float) -> str:
    """Why the driver gave the run up, as its ledger has it; "" where it has not, since then, or a
    bucket does not answer. since: unix seconds.
    """
    with contextlib.suppress(OSError):
        lines = Lines(folder / "ledger.jsonl", whole=True).new()
        for entry in filter(None, (parsed(line.encode()) for line in reversed(lines))):
            if entry.get("kind") == "gave_up" and entry.get("time", 0.0) >= since:
                return str(entry.get("reason", ""))
    return ""


def mine(newest: Attempt | None) -> Attempt | None:
    """The attempt that this process is: the newest, unless Ray says another number."""
    if newest is None:
        return None
    try:
        about = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))["metadata"]
        number = int(about["vtx_attempt"])
    except (ValueError, KeyError, TypeError):
        return newest
    if number != newest.number:
        raise UserError(
            f"This is attempt {number}, and {newest.id} has been submitted since: it goes on."
        )
    return newest


def recipe_at(folder: AnyPath, attempt: Attempt | None) -> Run:
    """The recipe of an attempt, else of the run in the folder, in this machine's terms.

    Raises UserError where there is none.
    """
    if attempt is None:
        return inputs.here(run_folder.recipe_of(folder), folder)
    recipes.let_import(attempt.paths)
    run: Run = override.from_dict(attempt.recipe)
    return inputs.here(run, folder)


def driven(args: argparse.Namespace, attempt: Attempt) -> int:
    """An attempt from start to end."""
    folder = place_at(args.run_folder).absolute()
    if attempts.stop_asked(folder, attempt.number):
        say("asked to leave before the start")
        return 75
    recipe = recipe_at(folder, attempt)
    patience = float("inf") if attempt.patience is None else attempt.patience
    epoch, words = attempt.silent or (0, {})
    return submit(recipe, folder, "auto", patience, args.debug or attempt.debug, (epoch, words))
