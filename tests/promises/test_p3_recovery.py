"""A process of a run that dies takes steps along, and nothing else."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes import about, children, loaders_of, rank_of, server_of
from tests.runs import environment, lines, losses, train
from tests.survivors import mentioning

STEPS = 60
KEYS = (f"steps={STEPS}", "checkpoint.every=6", "data.val_shards=", "system.workers=1")


def started(folder: Path, *keys: str, world: int = 2) -> subprocess.Popen:
    """`vtx train`, all of whose processes can be found by the folder above the run's."""
    words = ["train", "clip_vit_b32", "--smoke", "--run", str(folder), f"system.world={world}"]
    return subprocess.Popen(
        [sys.executable, "-m", "vtx_scale.launch.cli", *words, *keys],
        env=environment({"TEST_MARK": str(folder.parent)}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def wait(until, seconds: float = 150) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end
        time.sleep(0.02)


def step(folder: Path) -> int:
    """The newest that metrics.jsonl tells of."""
    try:
        return max((row["step"] for row in lines(folder / "metrics.jsonl")), default=0)
    except (OSError, ValueError):
        return 0


def saved(folder: Path) -> dict[str, object]:
    """File -> digest of the newest checkpoint; of JSON but for the name of the start that wrote it,
    and the sums over that.
    """
    newest = max((folder / "checkpoints").iterdir())
    found: dict[str, object] = {}
    for file in sorted(newest.rglob("*")):
        body = file.read_bytes()
        if file.suffix == ".json":
            own = ("attempt", "sum", "files")
            found[file.name] = {k: v for k, v in json.loads(body).items() if k not in own}
            continue
        found[file.name] = hashlib.sha256(body).hexdigest()
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    train(folder, *KEYS, "system.world=2")
    return folder


@pytest.mark.slow
def test_whoever_is_killed_the_bits_are_the_same(tmp_path, undisturbed):
    """A rank, the server of the ranks, and the server of a rank's loader workers, in one run."""
    folder = tmp_path / "run"
    process = started(folder, *KEYS)
    restarts = 0
    for who in (rank_of, loaders_of, server_of):
        before = step(folder)
        wait(lambda before=before: step(folder) >= before + 3)
        victim = who(process.pid, 1) if who is rank_of else who(process.pid)
        old = server_of(process.pid)
        os.kill(process.pid, signal.SIGSTOP)  # so that it is done before the run is over
        os.kill(victim, signal.SIGKILL)
        os.kill(process.pid, signal.SIGCONT)
        if who is loaders_of:
            wait(lambda: "worker_died" in (folder / "ledger.jsonl").read_text())
            continue
        restarts += 1
        wait(lambda n=restarts: restarted(folder) == n)
        if who is rank_of:
            assert server_of(process.pid) == old, "imported once more"
    assert process.wait(200) == 0
    assert restarted(folder) == restarts
    assert losses(folder) == losses(undisturbed)
    assert saved(folder) == saved(undisturbed)
    assert mentioning(str(tmp_path)) == []


def restarted(folder: Path) -> int:
    """How often, as the ledger has it."""
    ledger = folder / "ledger.jsonl"
    return sum(row["kind"] == "restart" for row in lines(ledger)) if ledger.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_nobody_outlives_a_launcher(tmp_path, world):
    """Ranks, servers and loader workers 5 s after SIGKILL of `vtx train`."""
    process = started(tmp_path / "run", "steps=100000", *KEYS[1:], world=world)
    wait(lambda: step(tmp_path / "run") >= 5)
    least = {1: 3, 2: 8}[world]  # each rank has a server and a worker
    assert len(mentioning(str(tmp_path))) >= least
    if world == 1:
        (loaders,) = [p for p in children(process.pid) if "tracker" not in about(p)[1]]
        assert about(loaders)[1] == about(process.pid)[1], "a new Python"
    process.kill()
    process.wait()
    wait(lambda: not mentioning(str(tmp_path)), 5)
