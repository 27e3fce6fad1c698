"""`vtx submit` to a cluster whose dashboard this machine reaches: a job, which needs it no more."""

import argparse
import contextlib
import shlex
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtx_scale.cluster.jobs import UNKNOWN, Jobs, Silent
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.objects import AnyPath, storage_of
from vtx_scale.launch import attempts, checks, inputs, override, packing, recipes
from vtx_scale.launch.address import web_address
from vtx_scale.launch.attempts import Attempt, End
from vtx_scale.launch.follow import Look, follow, look
from vtx_scale.specs.run import Run
from vtx_scale.trainer.output import say


def as_job(run: Run, folder: AnyPath, args: argparse.Namespace) -> int:
    """A job of the cluster; the exit code is the run's, or 0 where nobody stays to see it."""
    address, folder = web_address(args.address), folder.absolute()
    checks.check(run)
    if args.dry_run:
        body = packing.pack(recipes.STRANGERS)
        inputs.send(run, folder, say, really=False)
        say(f"would put {len(body) / 1e6:.1f} MB of code and the recipe into {folder}")
        say(f"would submit {entrypoint(folder)!r} to {address}")
        return 0
    jobs = Jobs(address)
    started = begin(
        folder,
        jobs,
        lambda: Wanted(
            override.to_dict(inputs.send(run, folder, say)),
            packing.pack(recipes.STRANGERS),
            list(recipes.STRANGERS),
            attempts.minutes(args.patience),
            args.debug,
        ),
    )
    if isinstance(started, Look):
        say(f"{alive(folder, started)}: nothing was submitted")
        return 0
    announce(folder, started)
    return 0 if args.detach else attached(folder, started, jobs)


@dataclass(frozen=True)
class Wanted:
    """What an attempt is to be: a recipe as the nodes can read it, and the code that runs it."""

    recipe: dict[str, Any]
    code: bytes
    paths: list[str]
    patience: float | None
    debug: bool


def begin(
    folder: AnyPath, jobs: Jobs, wanted: Callable[[], Wanted], found: Look | None = None
) -> Attempt | Look:
    """Submit the next attempt of a run; where one is alive that one is given, and nothing changes.

    wanted: is asked for when nothing stands against it. found: what has become of the newest
    attempt, where that was looked at before. Raises UserError where another process that is no job
    has the folder.
    """
    before = attempts.newest(folder)
    if before is not None:
        if found is None or found.attempt != before:
            found = look(folder, before, jobs)
        if found.alive:
            return found
        if not found.over:
            raise Silent(
                f"Nothing was submitted: job {before.id} is {found.sentence()}. {found.fault}"
            )
    elif (holder := attempts.holder_of(folder)).word == "held":
        raise UserError(f"{folder} is being written by {holder.who}: wait for it, or stop it.")
    what = wanted()
    number = attempts.next_number(attempts.numbers(folder))
    id = attempts.job_id(name_of(folder), number, lambda id: jobs.look(id).status != UNKNOWN)
    code = packing.name_of(what.code)
    storage_of(folder / "jobs").put_if_absent(code, what.code)
    attempt = Attempt(
        number,
        id,
        jobs.address,
        time.time(),
        what.recipe,
        code,
        what.patience,
        what.debug,
        what.paths,
        list(found.holder.words) if found is not None and found.holder.word == "silent" else None,
    )
    if not attempts.claim(folder, attempt):
        other = attempts.newest(folder)
        assert other is not None
        return look(folder, other, jobs)
    hand_over(folder, attempt, jobs, what.code)
    return attempt


def hand_over(folder: AnyPath, attempt: Attempt, jobs: Jobs, code: bytes) -> None:
    """Give an attempt to Ray. Nothing that goes there is a secret: whoever may look at the
    dashboard sees it. Raises what stood against it, which the run folder has then, too.
    """
    try:
        give(folder, attempt, jobs, code)
    except Exception as e:
        if isinstance(e, Silent) and jobs.look(attempt.id).status != UNKNOWN:
            return  # the answer alone was lost; `Silent` again where nobody knows
        with contextlib.suppress(OSError):  # which would hide what stood against it
            end = End(1, f"could not be submitted: {e}", 0, time.time())
            attempts.write_end(folder, attempt.number, end)
        raise


def give(folder: AnyPath, attempt: Attempt, jobs: Jobs, code: bytes) -> None:
    """The request itself. Raises UserError."""
    about = {"vtx_run": str(folder), "vtx_attempt": str(attempt.number)}
    with tempfile.TemporaryDirectory(prefix="vtx-code-") as at:
        package = Path(at) / attempt.code
        package.write_bytes(code)
        try:
            jobs.submit(attempt.id, entrypoint(folder), package, about)
        except FileExistsError:
            raise UserError(
                f"The cluster has a job {attempt.id} already: give the same command again."
            ) from None


def entrypoint(folder: AnyPath) -> str:
    """The command of a job, which finds all else in the run folder."""
    return f"python -m vtx_scale worker --run {shlex.quote(str(folder))}"


def name_of(folder: AnyPath) -> str:
    """Of a run, for people: the last part of its folder's path."""
    return str(folder).rstrip("/").rpartition("/")[2]


def alive(folder: AnyPath, found: Look) -> str:
    """That a job of a run is alive."""
    return f"job {found.attempt.id} of {folder} is alive ({found.sentence()})"


def announce(folder: AnyPath, attempt: Attempt) -> None:
    """What was submitted, and how to watch it."""
    run = shlex.quote(str(folder))
    print(f"job      {attempt.id}")
    print(f"run      {folder}")
    print(f"watch    vtx watch {run}")
    print(f"logs     vtx jobs logs -f {run}")
    print(f"stop     vtx jobs stop {run}", flush=True)


def attached(folder: AnyPath, attempt: Attempt, jobs: Jobs) -> int:
    """Show the job's log until it ends; its exit code. Ctrl-C leaves the job alone."""
    try:
        return follow(folder, attempt, jobs, say)
    except KeyboardInterrupt:
        say(
            f"detached: job {attempt.id} goes on; 'vtx jobs logs -f {folder}' shows its log, "
            f"'vtx jobs stop {folder}' has it save and leave."
        )
        return 130
