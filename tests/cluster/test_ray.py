"""`vtx submit`: the same worker under a real Ray, left, killed and started again;
and nothing of Ray remains.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.require import need
from tests.runs import SMALL, assert_same_bits, environment, lines, losses, train_on_ranks, vtx
from vtx_scale.checkpoints.read import newest
from vtx_scale.cluster.guard import family, living, processes
from vtx_scale.cluster.job import GaveUp
from vtx_scale.cluster.ray_settings import OWN, QUIET, settings
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.launch.paths import checkpoints_of

pytestmark = pytest.mark.slow

STEPS, KILLED = 120, 100
KEYS = (*SMALL, "system.world=2", f"steps={STEPS}", "checkpoint.every=10")


class Submitted:
    """A `vtx submit` in another process, and every process that came of it."""

    def __init__(self, folder: Path, home: Path, **env: str) -> None:
        self.family: set[tuple[int, int]] = set()
        self.ports: set[str] = set()
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "vtx_scale.launch.cli",
                "submit",
                "clip_vit_b32",
                "--smoke",
                "--run",
                str(folder),
                *KEYS,
            ],
            env={**environment({"HOME": str(home)}), **env},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def watch(self, until=lambda: False) -> None:
        """Look on until the process ends or `until` holds."""
        deadline = time.monotonic() + 200
        while self.process.poll() is None and not until():
            self.family |= family(self.process.pid)
            self.ports |= listening(self.family)
            assert time.monotonic() < deadline, "vtx submit does not end"
            time.sleep(0.2)

    def end(self) -> None:
        self.watch()
        self.code = self.process.returncode
        self.left = living(self.family)
        self.out, self.err = self.process.communicate()


def listening(known: set[tuple[int, int]]) -> set[str]:
    """The addresses on which these processes wait for connections, as /proc/net writes them."""
    sockets = {}
    for table in ("tcp", "tcp6"):
        for row in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = row.split()
            if fields[3] == "0A":
                sockets[f"socket:[{fields[9]}]"] = fields[1].rpartition(":")[0]
    found = set()
    for pid, _ in known:
        try:
            for fd in Path(f"/proc/{pid}/fd").iterdir():
                found.add(sockets.get(os.readlink(fd), ""))
        except OSError:
            continue
    return found - {""}


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """A run that is asked to leave by SIGTERM and, by the same command, goes on and loses a rank;
    and the run as it would have been.
    """
    need("ray")
    at = tmp_path_factory.mktemp("submit")
    train_on_ranks(at / "undisturbed", 2, "auto", f"steps={STEPS}", "checkpoint.every=10")
    left = Submitted(at / "run", at / "home")
    left.watch((at / "run" / "metrics.jsonl").exists)
    left.process.terminate()
    left.end()
    until = len(lines(at / "run" / "metrics.jsonl"))
    (at / "once").mkdir()
    again = Submitted(
        at / "run", at / "home", VTX_KILL=f"backward-{KILLED}:1", VTX_KILL_ONCE=str(at / "once")
    )
    again.end()
    return SimpleNamespace(at=at, left=left, until=until, again=again)


def test_sigterm_saves_and_leaves_with_75(story):
    assert story.left.code == 75, story.left.err
    assert 0 < story.until < KILLED
    assert f"left at step {story.until}" in story.left.err


def test_the_same_command_goes_on_and_a_lost_rank_is_started_again(story):
    assert story.again.code == 0, story.again.err
    assert f"resumed at step {story.until} of {STEPS}" in story.again.err
    assert (story.at / "once" / f"backward-{KILLED}.1").exists()
    name = socket.gethostname()
    why = f"rank 1 on {name}: ended with signal 9"
    assert f"{why}: starting again from step {KILLED - 10}" in story.again.err
    entries = [e for e in lines(story.at / "run" / "ledger.jsonl") if e["kind"] == "restart"]
    assert [(e["reason"], e["step"]) for e in entries] == [(why, KILLED - 10)]


def test_the_curve_and_every_tensor_are_those_of_the_undisturbed_run(story):
    assert losses(story.at / "run") == losses(story.at / "undisturbed")
    assert_same_bits(story.at / "run", story.at / "undisturbed")
    epoch = newest(checkpoints_of(story.at / "run"))["epoch"]
    assert epoch == 2, "the lease of the second vtx submit, on ranks that Ray started"


def test_the_terminal_shows_the_run_and_not_ray(story):
    known = (
        "Clip, ",
        "256 samples: ",
        "2 ranks on cpu",
        "reading the first batch",
        "making toy shards",
        "index ",
        "starting",
        "up to ",
        "step ",
        "resumed at",
        "asked to leave",
        "left at",
        "rank 1 on",
        "finished at",
    )
    for done in (story.left, story.again):
        assert done.out == ""
        assert all(line.startswith(known) for line in done.err.splitlines()), done.err
    assert f"step {STEPS}/{STEPS}" in story.again.err


def test_no_process_survives(story):
    for done in (story.left, story.again):
        assert len(done.family) > 5
        assert not done.left


def test_ray_listens_on_the_loopback_alone_and_leaves_the_home_folder_alone(story):
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert story.left.ports and story.left.ports <= loopback
    assert not (story.at / "home").exists()


def test_wrong_input_is_refused_before_ray_starts(tmp_path):
    for wrong, word in (("data.shards=/nowhere", "/nowhere"), ("--patience=-1", "--patience")):
        done = vtx("submit", "clip_vit_b32", "--smoke", "--run", tmp_path / "run", *SMALL, wrong)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1 and word in done.stderr, done.stderr


def test_an_address_where_nobody_listens_is_refused(tmp_path):
    need("ray")
    done = vtx(
        "submit",
        "clip_vit_b32",
        "--smoke",
        "--run",
        tmp_path / "run",
        *SMALL,
        "--address",
        "localhost:9",
    )
    assert done.returncode == 2
    assert "No Ray cluster lets us in at --address=localhost:9" in done.stderr


def test_the_names_of_ray_that_may_change_are_there():
    need("ray")
    from ray._private.ray_constants import ENABLE_RAY_CLUSTERS_ENV_VAR
    from ray._private.state import GlobalState

    from vtx_scale.cluster import ray_private

    assert ENABLE_RAY_CLUSTERS_ENV_VAR in OWN and "RAY_USAGE_STATS_ENABLED" in QUIET
    assert isinstance(ray_private.known, GlobalState)
    for name in ("get_draining_nodes", "available_resources_per_node"):
        assert callable(getattr(ray_private.known, name))


def test_the_token_is_for_its_owner_and_goes_with_the_folder(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with settings("local") as home:
        token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
        assert os.environ["RAY_AUTH_MODE"] == "token" and token.parent == home.parent
        assert token.stat().st_mode & 0o777 == 0o600
    assert not home.parent.exists() and os.environ["RAY_AUTH_MODE"] == "disabled"
    with (
        pytest.raises(GaveUp, match=r"no more; what Ray .* is in .*/session_latest/logs"),
        settings("local") as home,
    ):
        raise GaveUp("no more")
    assert home.exists() and not (home.parent / "token").exists()
    home.rmdir()
    home.parent.rmdir()
    with pytest.raises(UserError), settings("ray://host:10001"):
        pass


def test_a_ray_of_our_own_lies_in_a_folder_that_its_owner_alone_can_enter():
    body = (
        "from vtx_scale.cluster.ray_settings import settings\n"
        "with settings('local') as home:\n"
        "    from vtx_scale.cluster.ray_nodes import connected\n"
        "    with connected('local', home, 1):\n"
        "        found = [*home.rglob('sockets/*')]\n"
        "        assert (home / 'session_latest').exists() and found\n"
        "        modes = [oct(p.stat().st_mode & 0o777) for p in (home, home.parent)]\n"
        "        length = max(len(str(p)) - len(str(home.parent.parent)) for p in found)\n"
        "print(*modes)\n"  # connected() has nothing on stdout
        "print(length)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", body], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0, done.stderr
    modes, longest = done.stdout.splitlines()
    assert modes.split()[1] == "0o700", done.stdout
    assert 20 + int(longest) <= 107, "a socket has no room where the temporary folder is long"


def test_the_guard_ends_what_a_killed_process_leaves(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    body = (
        "import subprocess, sys, time\n"
        "from pathlib import Path\n"
        "from vtx_scale.cluster.guard import guarded\n"
        "with guarded(Path(sys.argv[1])):\n"
        "    p = subprocess.Popen(['sleep', '60'], start_new_session=True)\n"
        "    time.sleep(2)\n"
        "    print(p.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", body, str(folder)], stdout=subprocess.PIPE, text=True
    )
    sleeper = int(parent.stdout.readline())
    assert sleeper in processes()
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 10
    while (sleeper in processes() or folder.exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert sleeper not in processes() and not folder.exists()
