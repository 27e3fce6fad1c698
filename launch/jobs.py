"""`vtx jobs`: the jobs of a cluster, and of a run."""

import argparse
import json
import os
import shlex
import time
from dataclasses import dataclass, field
from typing import Any, Literal

from vtx_scale.checkpoints.format import steps
from vtx_scale.cluster.jobs import VARIABLES, Jobs, Silent
from vtx_scale.cluster.token import ensure_token
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.objects import AnyPath, storage_of
from vtx_scale.launch import attempts
from vtx_scale.launch.address import WEB, web_address
from vtx_scale.launch.attempts import FINAL, Attempt, End
from vtx_scale.launch.follow import Look, follow, look, on_stdout, row_of
from vtx_scale.launch.paths import checkpoints_of
from vtx_scale.launch.places import place_at
from vtx_scale.launch.submit_job import Wanted, alive, announce, begin
from vtx_scale.launch.tables import print_table
from vtx_scale.trainer.output import say, why

BY_RAY = 60.0  # seconds for a job to leave by itself, before Ray ends it
AGAIN = 5.0  # seconds between two requests to leave: one that came before the start is cleared away
WATCH = 10.0  # seconds between two looks of a supervisor


def run(args: argparse.Namespace) -> int:
    """One action; its exit code. Raises UserError."""
    if args.action == "token":
        return show_token()
    if not args.target:
        return listed(args)
    return ACTIONS[args.action](args, *target(args, args.target))


def show_token() -> int:
    """Say where this user's token is, which is made where there is none; not what it is.

    Raises UserError where its file is empty, with which a head would let nobody in.
    """
    path = ensure_token()
    if not path.read_text().strip():
        raise UserError(f"{path} is empty: remove it, and 'vtx jobs token' makes a token.")
    print(f"export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={shlex.quote(str(path))}")
    return 0


def address_of(args: argparse.Namespace) -> str:
    """Of the dashboard, by --address or the environment; "" where neither says."""
    given = [args.address, *(os.environ.get(name, "") for name in VARIABLES)]
    return next((web_address(text) for text in given if text.startswith(WEB)), "")


def cluster(args: argparse.Namespace) -> Jobs:
    """The cluster that is meant. Raises UserError where none is."""
    address = address_of(args)
    if not address:
        raise UserError(
            "Of which cluster? Give --address http://HOST:8265, or set RAY_API_SERVER_ADDRESS."
        )
    return Jobs(address)


def target(args: argparse.Namespace, given: str) -> tuple[AnyPath, Attempt]:
    """The run that is meant by its folder, or by the id of one of its jobs, and its newest attempt.

    Raises UserError where there is none.
    """
    folder = place_at(given).absolute()
    attempt = attempts.current(folder)
    if attempt is None and "/" not in given and address_of(args):
        about = dict(cluster(args).look(given).metadata)
        if "vtx_run" in about:
            folder = place_at(about["vtx_run"])
            attempt = attempts.current(folder)
    if attempt is None and (folder / "run.json").is_file():
        raise UserError(no_job(folder))
    if attempt is None:
        raise UserError(
            f"{given} is neither a run that was submitted nor the id of a job: 'vtx jobs "
            "list --address http://HOST:8265' lists a cluster's."
        )
    return folder, attempt


def no_job(folder: AnyPath) -> str:
    """Of a run that no job drives: who does, and what shows and ends it."""
    holder, run = attempts.holder_of(folder), shlex.quote(str(folder))
    if holder.word != "held":
        return f"{folder} is no job's, and nobody drives it now: 'vtx watch {run}' shows it."
    return (
        f"{folder} is no job's: it is driven by {holder.who}. 'vtx watch {run}' shows it; a file "
        f"{folder}/control/stop (touch it) has it save and leave."
    )


def asked(args: argparse.Namespace, attempt: Attempt) -> Jobs:
    """The cluster of an attempt, by --address, the environment, or as it was submitted.

    Raises UserError for one of a scheduler's file, which its scheduler starts.
    """
    if not attempt.code:
        raise UserError(
            f"{attempt.id} is of a file for Kubernetes, where it is shown, ended and begun again "
            "(kubectl get, delete or apply -f FILE)."
        )
    return Jobs(address_of(args) or attempt.address)


def if_there(args: argparse.Namespace, attempt: Attempt) -> Jobs | None:
    """The same where it answers and lets us in; the run folder tells without."""
    try:
        return asked(args, attempt)
    except UserError as e:
        say(f"{e} What follows is the run folder's word.")
    return None


def listed(args: argparse.Namespace) -> int:
    """The jobs of a cluster that are ours, as Ray has them."""
    rows: list[dict[str, Any]] = []
    for job in cluster(args).listed():
        about = dict(job.metadata)
        if "vtx_run" in about:
            began = time.strftime("%Y-%m-%d %H:%M", time.localtime(job.started))
            rows.append({"id": job.id, "ray": job.status, "began": began, "run": about["vtx_run"]})
    show(rows, args.json)
    return 0


def show(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Rows as lines of JSON, or as a table."""
    if as_json:
        for row in rows:
            print(json.dumps(row))
    elif rows:
        print_table(rows)


def status(args: argparse.Namespace, folder: AnyPath, attempt: Attempt) -> int:
    """What a run's newest job is doing."""
    found = look(folder, attempt, if_there(args, attempt))
    if found.fault:
        say(f"{found.fault} What follows is the run folder's word.")
    row = row_of(folder, found)
    if args.json:
        print(json.dumps(row))
        return 0
    loss = "" if row["loss"] is None else f", loss {row['loss']:.4g}"
    print(f"{attempt.id}: {found.sentence()}")
    print(f"step {row['step']} of {row['steps']}{loss}, in {folder}")
    return 0


def logs(args: argparse.Namespace, folder: AnyPath, attempt: Attempt) -> int:
    """The log of a run; with -f until its newest job has ended, whose exit code it gives."""
    jobs = if_there(args, attempt)
    try:
        code = follow(folder, attempt, jobs, on_stdout, whole=True, wait=args.follow)
    except KeyboardInterrupt:
        return 130
    return code if args.follow else 0


def stop(args: argparse.Namespace, folder: AnyPath, attempt: Attempt) -> int:
    """Have a run save and leave: by its folder, and after a minute by Ray."""
    over = attempts.end_of(folder, attempt.number) is not None
    if not over:
        attempts.ask_to_stop(folder, attempt.number)  # first: what else is to be known takes time
    jobs = if_there(args, attempt)
    found = look(folder, attempt, jobs)
    if found.state == "unknown":
        say(asked_unheard(folder, found))
        return 0
    if over or found.state == "lost":  # one that ended meanwhile was asked
        say(f"no job of {folder} is alive: {attempt.id} {found.sentence()}")
        return 0
    if jobs is not None and found.state == "waiting":
        jobs.stop(attempt.id)
        say(f"job {attempt.id} was waiting for a node, and is withdrawn")
        return 0
    say(f"asked job {attempt.id} to save and leave")
    end = left(folder, attempt, jobs)
    if isinstance(end, Look) and not end.over:
        say(asked_unheard(folder, end))
        return 0
    (folder / "control" / "stop").unlink(missing_ok=True)
    at = newest_step(folder)
    if isinstance(end, Look):
        say(f"job {attempt.id} is gone without a word; its newest checkpoint is of step {at}")
        return 1
    say(f"job {attempt.id} has ended with {end.code}; its newest checkpoint is of step {at}")
    return 0


def asked_unheard(folder: AnyPath, found: Look) -> str:
    """That a request to leave stands, of which nobody knows whether there is a job to follow it."""
    return (
        f"job {found.attempt.id} is {found.sentence()}: {folder}/control/stop stays there, and has "
        "it save and leave where it runs or will."
    )


def left(folder: AnyPath, attempt: Attempt, jobs: Jobs | None) -> End | Look:
    """How an attempt that was asked to leave has ended, or where that is not known, as it was found
    when it was no longer alive.
    """
    began = time.monotonic()
    by_ray, next_ask = began, began + AGAIN
    while (end := attempts.end_of(folder, attempt.number)) is None:
        now = time.monotonic()
        if now >= next_ask:
            attempts.ask_to_stop(folder, attempt.number)
            next_ask = now + AGAIN
        if jobs is not None and by_ray == began and now > began + BY_RAY:
            say("it has not left yet: Ray asks it now, and ends it where that does not help")
            try:
                jobs.stop(attempt.id)
            except Silent as e:
                say(str(e))
            by_ray = now
        if now > by_ray + BY_RAY and not (found := look(folder, attempt, jobs)).alive:
            return found.end or found
        time.sleep(0.5)
    return end


def again(folder: AnyPath, attempt: Attempt) -> Wanted:
    """An attempt once more: the same recipe and the same code. Raises UserError."""
    try:
        with storage_of(folder / "jobs").open(attempt.code) as file:
            code = file.read(0, file.size)
    except FileNotFoundError:
        raise UserError(
            f"{folder}/jobs/{attempt.code} is gone, which the run's jobs import: give the 'vtx "
            "submit' command again."
        ) from None
    return Wanted(attempt.recipe, code, attempt.paths, attempt.patience, attempt.debug)


def resume(args: argparse.Namespace, folder: AnyPath, attempt: Attempt) -> int:
    """Submit the next attempt of a run, where none is alive and the last has not finished."""
    end = attempts.end_of(folder, attempt.number)
    if end is not None and end.code == 0:
        say(f"{folder} has finished at step {end.step}: nothing was submitted")
        return 0
    started = begin(folder, asked(args, attempt), lambda: again(folder, attempt))
    if isinstance(started, Attempt):
        announce(folder, started)
    else:
        say(f"{alive(folder, started)}: nothing was submitted")
    return 0


def supervise(args: argparse.Namespace, folder: AnyPath, attempt: Attempt) -> int:
    """Resume a run whenever none of its jobs is alive, until it has ended for good or somebody
    stopped it; the exit code of its last job, and 1 where several in a row saved nothing new. A
    cluster or a bucket that is away is waited for. Raises UserError for what no later look mends.
    """
    supervisor = Supervisor(args, folder, attempt)
    say(f"watching {attempt.id}")
    try:
        while (code := supervisor.turn()) is None:
            time.sleep(WATCH)
    except KeyboardInterrupt:
        say(f"nobody watches {folder} now: job {supervisor.attempt.id} goes on")
        return 130
    return code


@dataclass
class Supervisor:
    """attempt: that is watched. saved: by attempt, the newest checkpoint at its end. away: which of
    the cluster and the run folder does not answer, "" while both do. over: the number of the last
    attempt of which it was said how it is over.
    """

    args: argparse.Namespace
    folder: AnyPath
    attempt: Attempt
    saved: dict[int, int] = field(default_factory=dict)
    away: Literal["", "the dashboard", "the run folder"] = ""
    over: int = 0

    def turn(self) -> int | None:
        """One look, and what comes of it; the exit code where nobody is to go on."""
        try:
            if not self.saved:
                self.saved[0] = newest_step(self.folder)
            jobs = self.cluster()
            found = look(self.folder, self.attempt, jobs)
            if jobs is not None and found.fault:
                self.say_once("the dashboard", found.fault)
            elif jobs is not None and self.away:
                say(f"{self.away} answers again")
                self.away = ""
            return self.decide(found, jobs)
        except Silent as e:
            self.attempt = attempts.newest(self.folder) or self.attempt
            self.say_once("the dashboard", str(e))
        except OSError as e:
            self.say_once("the run folder", f"{self.folder} does not answer ({why(e)}).")
        return None

    def cluster(self) -> Jobs | None:
        """Where the run's jobs are, None while nobody answers there. Raises UserError."""
        try:
            return asked(self.args, self.attempt)
        except Silent as e:
            self.say_once("the dashboard", str(e))
        return None

    def say_once(self, who: Literal["the dashboard", "the run folder"], sentence: str) -> None:
        """Of what does not answer, until it does."""
        if not self.away:
            self.away = who
            say(f"{sentence} Asking again.")

    def decide(self, found: Look, jobs: Jobs | None) -> int | None:
        """As `turn`, of what was found. Raises OSError, `Silent`, and UserError."""
        folder, attempt = self.folder, self.attempt
        if found.over:
            self.saved.setdefault(attempt.number, newest_step(folder))
        count = attempts.barren(list(self.saved.values()))
        stopped = attempts.stop_asked(folder, attempt.number)
        what = attempts.should(found.state, found.end, stopped, count)
        if what == "end":
            return last_word(folder, found, stopped)
        if what == "resume" and jobs is not None:
            if self.over != attempt.number:
                self.over = attempt.number
                say(f"job {attempt.id}: {found.sentence()}")
            time.sleep(attempts.pause(count))
            self.attempt = resumed(folder, jobs, found)
        return None


def resumed(folder: AnyPath, jobs: Jobs, found: Look) -> Attempt:
    """The attempt that goes on, by this process or by another that was quicker. Raises `Silent`
    where the cluster is gone again, UserError where the run cannot go on.
    """
    started = begin(folder, jobs, lambda: again(folder, found.attempt), found)
    if isinstance(started, Attempt):
        say(f"job {started.id} was submitted; the run goes on from step {newest_step(folder)}")
        return started
    return started.attempt


def last_word(folder: AnyPath, found: Look, stopped: bool) -> int:
    """Why nobody is to go on with a run; the exit code. stopped: somebody asked it to leave."""
    code = found.end.code if found.end is not None else 75 if stopped else 1
    if not stopped and code not in (*FINAL, 75):
        say(
            f"{folder}: {attempts.BARREN} jobs in a row saved nothing new, the last one "
            f"{found.sentence()}: see 'vtx jobs logs {folder}'."
        )
        return 1
    asked_to = "asked to leave: " if stopped else ""
    say(f"{folder}: {asked_to}{found.sentence()}")
    return code


def newest_step(folder: AnyPath) -> int:
    """Of a run's checkpoints, 0 where there is none."""
    return max(steps(checkpoints_of(folder)), default=0)


ACTIONS = {
    "list": status,  # of one run
    "status": status,
    "logs": logs,
    "stop": stop,
    "resume": resume,
    "supervise": supervise,
}
