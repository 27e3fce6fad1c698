"""Jobs on a real cluster, with a token: submitted, watched, stopped, resumed by whoever has the run
folder; and no secret stands anywhere.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.cluster.head import head
from tests.require import need
from tests.runs import SMALL, assert_same_bits, environment, lines, losses, vtx
from tests.s3 import free_ports
from vtx_scale.launch.attempts import numbers

# a cluster is started and four jobs are submitted: minutes where others use the machine
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = 240
STRANGER = Path(__file__).parents[1] / "surfaces" / "stranger" / "average_colour.py"
# beside it; a step takes as long as that of a larger model, for as long as a file is there
SLOW = """
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from average_colour import Colour, ColourObjective, average_colour


class Slow(ColourObjective):
    def forward(self, batch, step=0):
        if Path({hold!r}).exists():
            time.sleep(0.4)
        return super().forward(batch, step)


@dataclass(frozen=True, kw_only=True)
class SlowColour(Colour):
    build: ClassVar[str] = "slow_colour:Slow"


def slow_colour():
    return replace(average_colour(), objective=SlowColour())
"""
KEYS = (*SMALL, "system.world=1", f"steps={STEPS}", "checkpoint.every=60")
CLIP = ("submit", "clip_vit_b32", "--smoke", *SMALL)
PLANTED = {  # of the machine that submits, and of the nodes
    "here": {"AWS_ACCESS_KEY_ID": "AKIAHERE0000", "AWS_SECRET_ACCESS_KEY": "hereSecret0000"},
    "nodes": {"AWS_ACCESS_KEY_ID": "AKIANODE1111", "AWS_SECRET_ACCESS_KEY": "nodeSecret1111"},
}
WAIT = 240.0  # seconds for a job to start, on a machine that eight others use


def until(holds, what: str, seconds: float = WAIT) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


class Laptop:
    """A machine that can reach the dashboard: its commands, and all that they print."""

    def __init__(self, at: Path) -> None:
        self.env = {"XDG_CONFIG_HOME": str(at / "config"), **PLANTED["here"]}
        self.printed: list[str] = []

    def __call__(self, *words: object, **env: str) -> subprocess.CompletedProcess[str]:
        done = vtx(*words, env={**self.env, **env})
        self.printed += [done.stdout, done.stderr]
        return done

    def start(self, *words: object) -> subprocess.Popen[str]:
        """A command that one may interrupt."""
        return subprocess.Popen(
            [sys.executable, "-m", "vtx_scale.launch.cli", *map(str, words)],
            env=environment(self.env),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def ended(self, process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
        out, err = process.communicate(timeout=WAIT)
        self.printed += [out, err]
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def recipe_in(folder: Path, hold: Path) -> str:
    """A stranger's recipe in two files; its name."""
    folder.mkdir()
    shutil.copy(STRANGER, folder)
    (folder / "slow_colour.py").write_text(SLOW.format(hold=str(hold)))
    return f"{folder / 'slow_colour.py'}:slow_colour"


def undisturbed(folder: Path, name: str, *keys: str) -> None:
    """The same training without a cluster, in a process of its own: its modules have the names of
    other tests'.
    """
    done = vtx("train", name, "--run", folder, *SMALL, *keys)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """A stranger's recipe that is submitted, left alone by Ctrl-C, submitted again, stopped, and
    resumed when its files are gone; a refusal; and what there is when the head is gone.
    """
    need("ray")
    at = tmp_path_factory.mktemp("jobs")
    laptop = Laptop(at)
    made = laptop("jobs", "token")
    token = at / "config" / "vtx-scale" / "ray-token"
    run, hold = at / "runs" / "colour", at / "hold"
    (at / "runs").mkdir()
    hold.touch()
    s = SimpleNamespace(at=at, laptop=laptop, made=made, token=token, run=run, hold=hold)
    with head(token, **PLANTED["nodes"]) as s.head:
        s.where = ("--address", s.head.address)
        tell(s)
        s.left = s.head.end()
        s.gone = [laptop("jobs", word, run) for word in ("logs", "status")]
        s.files = all_text(s.head.home)
    return s


def tell(s: SimpleNamespace) -> None:
    """What happens while the head is there."""
    laptop, run = s.laptop, s.run
    s.refused = {
        name: laptop(*CLIP, "--run", s.at / "runs" / "no", *s.where, **env)
        for name, env in {
            "401": {"XDG_CONFIG_HOME": str(s.at / "none"), "HOME": str(s.at / "none")},
            "403": {"RAY_AUTH_TOKEN": "f" * 64},
        }.items()
    }
    submit = ("submit", recipe_in(s.at / "mine", s.hold), *KEYS, "--run", run, *s.where)
    first = laptop.start(*submit)
    shown = []
    while not any("step 1/" in line for line in shown):
        shown.append(first.stderr.readline())
        assert shown[-1], f"it has ended: {shown}"
    first.send_signal(signal.SIGINT)
    s.detached = laptop.ended(first)
    before = sorted(p.name for p in (run / "jobs").iterdir())
    s.twice = laptop(*submit)
    shutil.rmtree(s.at / "mine")
    s.changed = sorted(p.name for p in (run / "jobs").iterdir()) != before
    s.head.look()
    s.variables = s.head.variables()
    s.running = laptop("jobs", "status", run, "--json")
    s.stopped = laptop("jobs", "stop", run, *s.where)
    s.until = len(lines(run / "metrics.jsonl"))
    s.hold.unlink()
    s.status = laptop("jobs", "status", "colour-1", "--json", *s.where)
    s.resumed = [laptop("jobs", "resume", run) for _ in range(2)]
    s.followed = laptop("jobs", "logs", "-f", run, *s.where)
    s.finished = laptop("jobs", "resume", run)
    s.refusal = laptop(*CLIP, "--run", s.at / "runs" / "clip", "data.shards=/nowhere", *s.where)
    s.listed = laptop("jobs", "--json", RAY_API_SERVER_ADDRESS=s.head.address)
    s.by_ray = rays_own(s)


def rays_own(s: SimpleNamespace) -> str:
    """All that Ray says of its jobs to whoever may ask."""
    code = (
        "import json, sys; from ray.job_submission import JobSubmissionClient as C\n"
        "c = C(sys.argv[1])\n"
        "print([j.dict() for j in c.list_jobs()], [c.get_job_logs(j.submission_id) "
        "for j in c.list_jobs()])"
    )
    env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(s.token)}
    command = [sys.executable, "-c", code, s.head.address]
    done = subprocess.run(command, text=True, capture_output=True, env=environment(env))
    assert done.returncode == 0, done.stderr
    return done.stdout


def all_text(folder: Path) -> dict[str, str]:
    """Path -> text of every file below a folder; packed ones too, as they are."""
    return {
        str(p): p.read_text(errors="replace")
        for p in folder.rglob("*")
        if p.is_file() and not p.is_symlink() and p.stat().st_size < 50_000_000
    }


def test_a_token_is_made_for_its_owner_alone(story):
    assert story.made.stdout == (f"export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={story.token}\n")
    assert story.token.stat().st_mode & 0o777 == 0o600 and len(story.token.read_text()) == 64


def test_without_the_token_nobody_is_let_in(story):
    for code, done in story.refused.items():
        assert done.returncode == 2, done.stderr
        assert len(done.stderr.splitlines()) == 1 and f"HTTP {code}" in done.stderr, done.stderr
    assert not (story.at / "runs" / "no").exists()


def test_a_job_is_named_and_goes_on_without_the_one_who_submitted_it(story):
    assert story.detached.returncode == 130, story.detached.stderr
    assert story.detached.stdout.startswith(f"job      colour-1\nrun      {story.run}\n")
    assert "detached: job colour-1 goes on" in story.detached.stderr


def test_a_second_submission_says_who_is_alive_and_changes_nothing(story):
    assert story.twice.returncode == 0, story.twice.stderr
    assert f"job colour-1 of {story.run} is alive (running" in story.twice.stderr
    assert not story.changed
    row = json.loads(story.running.stdout)
    assert row["state"] == "running" and row["ray"] == "RUNNING" and row["step"] >= 1, row


def test_stop_saves_and_leaves_with_75(story):
    assert story.stopped.returncode == 0 and "has ended with 75" in story.stopped.stderr
    assert 0 < story.until < STEPS
    row = json.loads(story.status.stdout)  # by the job's id
    assert (row["state"], row["code"], row["step"]) == ("ended", 75, story.until), row
    assert not (story.run / "control" / "stop").exists()


def test_resume_goes_on_once(story):
    first, second = story.resumed
    assert first.returncode == second.returncode == 0, first.stderr
    assert first.stdout.startswith("job      colour-2\n")
    assert "job colour-2 of" in second.stderr and "is alive" in second.stderr, second.stderr
    assert second.stdout == "" and numbers(story.run) == [1, 2]
    assert story.followed.returncode == 0, story.followed.stderr
    assert f"resumed at step {story.until} of {STEPS}" in story.followed.stdout
    assert f"has finished at step {STEPS}" in story.finished.stderr


def test_the_bits_are_those_of_the_undisturbed_run(story, tmp_path):
    name = recipe_in(tmp_path / "recipe", story.hold)
    keys = (f"steps={STEPS}", "checkpoint.every=60")
    undisturbed(tmp_path / "calm", name, *keys)
    assert losses(story.run) == losses(tmp_path / "calm")
    assert_same_bits(story.run, tmp_path / "calm")


def test_a_refusal_of_the_nodes_comes_back_to_who_waits(story):
    assert story.refusal.returncode == 2, story.refusal.stderr
    assert "data.shards=/nowhere is read on the nodes: each must see it" in story.refusal.stderr
    assert "vtx: /nowhere does not exist" in story.refusal.stderr.splitlines()[-1]


def test_the_jobs_of_a_cluster_are_listed(story):
    rows = {r["id"]: r for r in map(json.loads, story.listed.stdout.splitlines())}
    assert rows.keys() == {"colour-1", "colour-2", "clip-1"}, story.listed.stderr
    assert rows["colour-2"]["ray"] == "SUCCEEDED" and rows["colour-2"]["run"] == str(story.run)


def test_logs_and_status_outlive_the_head(story):
    logs, status = story.gone
    assert logs.returncode == status.returncode == 0, logs.stderr
    assert "No Ray dashboard answers" in logs.stderr
    assert f"resumed at step {story.until}" in logs.stdout and "finished at step" in logs.stdout
    assert f"colour-2: finished at step {STEPS}" in status.stdout


def test_no_secret_stands_anywhere(story):
    """The keys of the machine that submits leave it in no way; those of the nodes, and the token,
    stand in no log, message, command, metadata or run folder.
    """
    secret = [story.token.read_text(), *(v for at in PLANTED.values() for v in at.values())]
    places = {
        **{f"printed {i}": text for i, text in enumerate(story.laptop.printed)},
        **{f"command {c}": c for c in story.head.cmdlines},
        **all_text(story.at / "runs"),
        **story.files,
        "what Ray says": story.by_ray,
    }
    assert "colour-2" in story.by_ray and any("vtx_scale worker" in c for c in story.head.cmdlines)
    found = {name: s for name, text in places.items() for s in secret if s in text}
    assert not found, found
    drivers = {k: v for k, v in story.variables.items() if "vtx_scale worker" in k}
    assert drivers and all("nodeSecret1111" in v for v in drivers.values())
    ours = (story.token.read_text(), *PLANTED["here"].values())
    assert not [k for k, v in story.variables.items() if any(s in v for s in ours)]


def test_nothing_of_the_cluster_remains(story):
    assert len(story.head.family) > 5 and not story.left


def test_a_wrong_address_is_answered_in_seconds(tmp_path):
    """One where nobody listens, and one that is silent."""
    took = []
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        for port in (free_ports(1)[0], mute.getsockname()[1]):
            address, began = f"http://127.0.0.1:{port}", time.monotonic()
            words = ("submit", "clip_vit_b32", "--smoke", "--run", tmp_path / "run")
            done = vtx(*words, "--address", address)
            took.append(time.monotonic() - began)
            assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
            assert f"No Ray dashboard answers at {address}" in done.stderr
    # the first is a start of Python, of Ray's client, and a refusal: a second on a quiet machine
    assert took[1] < 4 + 2 * took[0], took
    assert not (tmp_path / "run").exists()


@pytest.mark.full
def test_a_supervisor_resumes_what_dies_without_a_word(tmp_path):
    """The driver is killed: the lease runs out, and the run goes on to the same bits."""
    need("ray")
    laptop, run, hold = Laptop(tmp_path), tmp_path / "colour", tmp_path / "hold"
    hold.touch()
    laptop("jobs", "token")
    token = tmp_path / "config" / "vtx-scale" / "ray-token"
    name = recipe_in(tmp_path / "recipe", hold)
    with head(token) as cluster:
        done = laptop("submit", name, *KEYS, "--run", run, "--address", cluster.address, "--detach")
        assert done.returncode == 0, done.stderr
        until((run / "metrics.jsonl").exists, cluster.output())
        watching = laptop.start("jobs", "supervise", run)
        lines = [key.split() for key in cluster.variables()]
        # not the shell that Ray may start it by, which has the same words
        (driver,) = (int(x[0]) for x in lines if x[2:5] == ["-m", "vtx_scale", "worker"])
        cluster.look()
        os.kill(driver, signal.SIGKILL)
        hold.unlink()
        ended = laptop.ended(watching)
        assert ended.returncode == 0, ended.stderr
        assert "job colour-1: lost without a word" in ended.stderr
        assert "job colour-2 was submitted" in ended.stderr and numbers(run) == [1, 2]
        assert not cluster.end()
    keys = (f"steps={STEPS}", "checkpoint.every=60")
    undisturbed(tmp_path / "calm", name, *keys)
    assert_same_bits(run, tmp_path / "calm")
