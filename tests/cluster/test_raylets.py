"""A run over several raylets: machines that die, return, are taken away with notice, or fall
silent.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.cluster.raylets import Raylets, raylets
from tests.require import need
from tests.runs import assert_same_bits, environment, lines, losses, train_on_ranks
from tests.survivors import mentioning
from vtx_scale.checkpoints.read import newest
from vtx_scale.launch.paths import checkpoints_of

pytestmark = [pytest.mark.slow, pytest.mark.services, pytest.mark.timeout(600)]

TIMEOUT = 10  # seconds of collectives, and of a machine's silence


class Submitted:
    """A `vtx submit` to a cluster, whose terminal is read as it comes."""

    def __init__(self, cluster: Raylets, folder: Path, *keys: str) -> None:
        self.folder, self.heard = folder, []
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "vtx_scale.launch.cli", "submit", "clip_vit_b32"),
                *("--smoke", "--run", str(folder), "--address", cluster.address),
                *("system.workers=0", f"system.timeout={TIMEOUT}", *keys),
            ],
            env=environment({**cluster.environment, "VTX_TEST_MARK": str(folder)}),
            text=True,
            stderr=subprocess.PIPE,
        )
        self.reader = threading.Thread(target=self.read)
        self.reader.start()

    def read(self) -> None:
        for line in self.process.stderr:
            self.heard.append((time.time(), line.rstrip()))

    def until(self, holds, seconds: float = 150) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.1)

    def until_said(self, words: str) -> float:
        """When it was."""
        self.until(lambda: words in self.said())
        return next(at for at, line in self.heard if words in line)

    def until_steps(self, more: int) -> None:
        """So many steps are done after those that are."""
        steps = self.steps()
        self.until(lambda: self.steps() >= steps + more)

    def steps(self) -> int:
        file = self.folder / "metrics.jsonl"
        return len(file.read_text().splitlines()) if file.exists() else 0

    def said(self) -> str:
        return "\n".join(line for _, line in self.heard)

    def end(self, code: int) -> None:
        assert self.process.wait(150) == code, self.said()
        self.reader.join()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.reader.join()


@pytest.fixture(scope="module")
def cluster():
    need("ray")
    with raylets() as found:
        yield found


@pytest.fixture
def submit(cluster, tmp_path):
    made = []

    def start(*keys: str, folder: str = "run") -> Submitted:
        made.append(Submitted(cluster, tmp_path / folder, *keys))
        return made[-1]

    yield start
    for one in made:
        one.close()


def ranks_of(round: int, folder: Path) -> list[tuple[int, str]]:
    """The processes of a round that carry it in their environment."""
    found = []
    for pid, command in mentioning(f"VTX_TEST_MARK={folder}"):
        try:
            about = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        if f"VTX_ROUND={round}".encode() in about.split(b"\0"):
            found.append((pid, command))
    return found


def test_a_run_shrinks_grows_and_leaves_a_machine_that_is_taken_away(cluster, submit, tmp_path):
    """4 -> 2 of 3 slots, as tp 2 admits -> 4 -> 2 within the notice; one curve throughout."""
    for name, cpus in (("a", 2), ("b", 1), ("c", 1)):
        cluster.add(name, cpus)
    keys = (
        *("system.tp=2", "system.precision=fp64", "steps=6000", "checkpoint.every=20"),
        "system.spare=0",  # a process of Python shows its environment, a forked one its server's
    )
    run = submit(*keys, "system.strategy=fsdp", "system.world=2..4")
    run.until_said("starting 4 workers on a (2), b (1), c (1)")
    run.until(lambda: run.steps() >= 25)

    at = time.time()
    cluster.remove("c")
    run.until_said("c has lost the process that keeps its ranks: starting again from step")
    run.until_said("idle slots, of which no world can be made: 1 on b")
    assert time.time() - at < 60
    run.until_said("resumed at")
    assert not ranks_of(1, run.folder), "ranks live on where their raylet is dead"
    run.until_steps(5)

    cluster.add("d", 1)
    run.until_said("room for 4 workers: the workers save and start again")
    run.until_said("starting 4 workers on a (2), b (1), d (1)")
    run.until(lambda: run.said().count("resumed at") == 2)
    run.until_steps(5)

    at = time.time()
    cluster.drain("d", 20)
    saved = run.until_said("d is being taken away: starting again from step")
    assert saved - at < 20
    run.until(lambda: run.said().count("resumed at") == 3)
    run.until_steps(5)
    run.process.terminate()
    run.end(75)

    entries = lines(run.folder / "ledger.jsonl")
    assert [e["node"] for e in entries if e["kind"] == "node_lost"] == ["c"]
    assert [e["kind"] for e in entries].count("restart") == 3
    assert newest(checkpoints_of(run.folder))["step"] == run.steps()
    train_on_ranks(
        tmp_path / "undisturbed",
        4,
        "fsdp",
        *keys,
        *(f"system.timeout={TIMEOUT}", f"system.leave_after={run.steps()}"),
        code=75,
    )
    assert losses(run.folder) == pytest.approx(losses(tmp_path / "undisturbed"), rel=1e-5)
    for name in ("a", "b"):
        cluster.remove(name)


def test_a_fixed_world_waits_for_a_machine_and_goes_on_with_the_same_bits(
    cluster, submit, tmp_path
):
    for name in ("e", "f"):
        cluster.add(name, 1)
    keys = ("steps=300", "checkpoint.every=20")
    run = submit(*keys, "system.world=2")
    run.until(lambda: run.steps() >= 25)
    cluster.remove("f")
    run.until_said("waiting for machines: 1 of 2 slots")
    cluster.add("g", 1)
    run.until_said("starting 2 workers on e (1), g (1)")
    run.end(0)
    train_on_ranks(tmp_path / "undisturbed", 2, "auto", *keys)
    assert losses(run.folder) == losses(tmp_path / "undisturbed")
    assert_same_bits(run.folder, tmp_path / "undisturbed")
    for name in ("e", "g"):
        cluster.remove(name)


def test_a_machine_that_falls_silent_is_lost_and_its_ranks_save_nothing_more(
    cluster, submit, tmp_path
):
    """Its ranks train on, as nobody there can end them: their epoch no longer counts. A driver
    that has lost its lease ends.
    """
    for name in ("h", "i"):
        cluster.add(name, 1)
    run = submit("steps=100000", "checkpoint.every=20", "system.world=1", "system.spare=0")
    run.until(lambda: run.steps() >= 25)
    keeper = next(pid for pid, _ in mentioning("Keeper") if child_of(pid, ranks_of(1, run.folder)))
    at, stopped = time.time(), (keeper, parent_of(keeper))  # and its raylet, which would end it
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        lost = run.until_said(f"has been silent for {TIMEOUT} s: starting again from step")
        assert TIMEOUT - 1 < lost - at < 2 * TIMEOUT
        run.until(lambda: run.said().count("resumed at") == 1)
        run.until(lambda: not ranks_of(1, run.folder))  # its next save was refused
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGKILL)
    run.until(lambda: newest(checkpoints_of(run.folder))["epoch"] == 2)
    (run.folder / "lease" / "00000003").write_text('{"who": "somebody else", "state": "held"}')
    run.end(2)  # now the driver has lost it too
    assert "somebody else" in run.said()
    entries = lines(run.folder / "ledger.jsonl")
    assert len([e for e in entries if e["kind"] == "node_lost"]) == 1
    for name in ("h", "i"):
        cluster.remove(name)


def child_of(pid: int, ranks: list[tuple[int, str]]) -> bool:
    """Whether one of these is a child of a process."""
    return any(pid == parent_of(rank) for rank, _ in ranks)


def parent_of(pid: int) -> int:
    """0 where it has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
