"""P4: every signal that asks to leave, on one rank and two, wherever the run is: it saves what
there is, exits with 75, and the same command goes on on the same curve.
"""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.ranks import SERVER
from tests.runs import environment, lines, losses
from tests.survivors import assert_none_survives
from vtx_scale.data_pipeline.signals import leaving

ROOT = Path(__file__).parents[2]
HELD = f"{Path(__file__).with_name('held.py')}:held"
PLACES = ("step", "data", "indexing", "evaluating", "saving")
CELLS = list(itertools.product(leaving(), (1, 2), PLACES))
# each signal, world and place at least once, each pair of world and place: the other cells in [F]
COVERING = [
    (signal.SIGTERM, 1, "step"),
    (signal.SIGUSR1, 1, "data"),
    (signal.SIGHUP, 1, "indexing"),
    (signal.SIGINT, 1, "evaluating"),
    (signal.SIGUSR1, 1, "saving"),
    (signal.SIGHUP, 1, "step"),
    (signal.SIGINT, 1, "data"),
    (signal.SIGTERM, 1, "evaluating"),
    (signal.SIGUSR1, 2, "step"),
    (signal.SIGTERM, 2, "data"),
    (signal.SIGHUP, 2, "evaluating"),
    (signal.SIGINT, 2, "saving"),
]


def command(folder: Path, world: int) -> list[str]:
    return ["train", HELD, "--run", str(folder), "system.workers=0", f"system.world={world}"]


def warm(arguments: list[str], extra: dict[str, str], patience: float) -> None:
    """`vtx ARGUMENTS` in a process forked from the tests' server; never returns."""
    os.setpgrp()
    os.environ.update(extra)
    sys.stderr = sys.__stderr__ = open(extra["ERR"], "w", buffering=1)  # noqa: SIM115
    os.dup2(sys.stderr.fileno(), 2)
    for number in leaving():  # as a shell starts a command
        signal.signal(
            number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        )
    from vtx_scale.launch import cli
    from vtx_scale.trainer import leave, loop

    leave.PATIENCE = loop.PATIENCE = leave.requests.patience = patience
    os._exit(cli.main(arguments))


class Started:
    """A command that runs, by fork for one rank and in a Python of its own for more."""

    def __init__(self, folder: Path, world: int, patience: float = 30.0) -> None:
        self.folder, self.hold = folder, folder.parent / "hold"
        self.hold.mkdir(exist_ok=True)
        self.err = folder.parent / "err"
        extra = environment(
            {
                "HOLD": str(self.hold),
                "ERR": str(self.err),
                "PYTHONPATH": str(ROOT),
                "XDG_CACHE_HOME": str(folder.parent / "cache"),
            }
        )
        self.process = None
        if world == 1:
            arguments = (command(folder, world), extra, patience)
            self.process = SERVER.Process(target=warm, args=arguments)
            self.process.start()
            self.pid = self.process.pid
        else:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "vtx_scale.launch.cli", *command(folder, world)],
                env=extra,
                stderr=self.err.open("w"),
                cwd=ROOT,
                process_group=0,
            )
            self.pid = self.popen.pid

    def wait(self, seconds: float) -> int:
        """The exit code, of a process that ended within so many seconds."""
        if self.process is not None:
            self.process.join(seconds)
            assert self.process.exitcode is not None, "still there"
            return self.process.exitcode
        return self.popen.wait(seconds)

    def reach(self, place: str, seconds: float = 60.0) -> None:
        until = time.monotonic() + seconds
        while not (self.hold / f"{place}.here").exists():
            assert time.monotonic() < until, f"never came to {place}\n{self.err.read_text()}"
            time.sleep(0.01)

    def end(self) -> None:
        with_pid = self.process is None and self.popen.poll() is None
        if with_pid or (self.process is not None and self.process.is_alive()):
            os.kill(self.pid, signal.SIGKILL)


@pytest.fixture
def started():
    runs: list[Started] = []

    def start(*arguments, **options):
        runs.append(Started(*arguments, **options))
        return runs[-1]

    yield start
    for run in runs:
        run.end()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The losses of a run that nobody asked to leave, by world."""
    known: dict[int, list[float]] = {}

    def get(world: int) -> list[float]:
        if world not in known:
            folder = tmp_path_factory.mktemp(f"whole-{world}") / "run"
            run = Started(folder, world)
            assert run.wait(120) == 0, run.err.read_text()
            known[world] = losses(folder)
        return known[world]

    return get


def test_the_list_of_signals():
    """SIGHUP only where it is not ignored at the start, as under nohup."""
    asks = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1}
    assert set(leaving()) >= asks
    for handler, more in ((signal.SIG_IGN, set()), (signal.SIG_DFL, {signal.SIGHUP})):
        before = signal.signal(signal.SIGHUP, handler)
        try:
            assert set(leaving()) == asks | more
        finally:
            signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "world", "place"),
    [c if c in COVERING else pytest.param(*c, marks=pytest.mark.full) for c in CELLS],
    ids=lambda value: value.name if isinstance(value, signal.Signals) else str(value),
)
def test_asked_to_leave(undisturbed, started, tmp_path, number, world, place):
    folder = tmp_path / "run"
    run = started(folder, world)
    (run.hold / place).touch()
    run.reach(place)
    time.sleep(0.2)  # both ranks are there
    os.kill(run.pid, number)
    if place in ("step", "saving") or (place, world) == ("evaluating", 2):
        # no step is thrown away: it leaves behind it; ranks leave at the same batch
        threading.Timer(1.0, lambda: (run.hold / place).unlink()).start()
    began = time.monotonic()
    assert run.wait(40) == 75, run.err.read_text()
    took = time.monotonic() - began
    assert took < 20, f"{took:.1f} s"  # far from the 60 s that the place holds
    assert "Traceback" not in run.err.read_text(), run.err.read_text()
    assert_none_survives(folder)
    there = folder / "checkpoints"
    steps = sorted(p.name for p in there.glob("step-*")) if there.exists() else []
    done = len(lines(folder / "metrics.jsonl")) if (folder / "metrics.jsonl").exists() else 0
    assert bool(steps) == bool(done), (steps, done)
    if done:
        assert steps[-1] == f"step-{done:08d}", "a finished step is lost"
    (run.hold / place).unlink(missing_ok=True)
    again = started(folder, world)
    assert again.wait(90) == 0, again.err.read_text()
    assert losses(folder) == undisturbed(world)
    rows = [r["step"] for r in lines(folder / "evaluations.jsonl")]
    assert rows == [2, 4, 6, 8], rows


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 1), (signal.SIGUSR1, 1)]
)
@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.full)])
def test_a_second_request_ends_at_once(started, tmp_path, world, number, code):
    """With what is committed: nobody waits for the step."""
    run = started(tmp_path / "run", world)
    (run.hold / "step").touch()
    run.reach("step")
    os.kill(run.pid, number)
    time.sleep(1)
    os.kill(run.pid, number)
    assert run.wait(8) == code, run.err.read_text()
    assert_none_survives(tmp_path / "run")


@pytest.mark.slow
def test_patience_ends(started, tmp_path):
    """A step that does not end is not waited for: the two steps before it were not saved, so the
    code is no 75.
    """
    run = started(tmp_path / "run", 1, patience=2.0)
    (run.hold / "step").touch()
    run.reach("step")
    os.kill(run.pid, signal.SIGUSR1)
    assert run.wait(15) == 1
    assert "still busy" in run.err.read_text()


@pytest.mark.slow
def test_the_first_step_is_left_at_once(undisturbed, started, tmp_path):
    """It may compile for minutes, and nothing is lost by it."""
    run = started(tmp_path / "run", 1)
    (run.hold / "first").touch()
    run.reach("first")
    began = time.monotonic()
    os.kill(run.pid, signal.SIGTERM)
    assert run.wait(20) == 75, run.err.read_text()
    assert time.monotonic() - began < 10
    (run.hold / "first").unlink()
    again = started(tmp_path / "run", 1)
    assert again.wait(90) == 0, again.err.read_text()
    assert losses(tmp_path / "run") == undisturbed(1)


@pytest.mark.slow
def test_what_comes_together_is_one_request(started, tmp_path):
    """A scheduler signals a whole group, and a launcher passes it on: that is no second request."""
    run = started(tmp_path / "run", 1)
    (run.hold / "step").touch()
    run.reach("step")
    os.kill(run.pid, signal.SIGUSR1)
    os.kill(run.pid, signal.SIGTERM)
    time.sleep(0.5)
    (run.hold / "step").unlink()
    assert run.wait(20) == 75, run.err.read_text()


@pytest.mark.slow
def test_the_stop_file_is_seen_while_waiting(started, tmp_path):
    run = started(tmp_path / "run", 1)
    (run.hold / "data").touch()
    run.reach("data")
    (tmp_path / "run" / "control").mkdir(exist_ok=True)
    (tmp_path / "run" / "control" / "stop").touch()
    assert run.wait(20) == 75, run.err.read_text()
