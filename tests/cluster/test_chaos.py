"""A run on a cluster of machines that is struck by faults at random moments is the run that it
would have been.
"""

import secrets
import time
from random import Random

import pytest

from tests.cluster.bed import bed, filled
from tests.cluster.chaos import FAULTS, Chaos, Watcher
from tests.require import need
from tests.runs import train_on_ranks
from vtx_scale.checkpoints.read import Tensors, newest
from vtx_scale.launch.paths import checkpoints_of
from vtx_scale.launch.places import place_at
from vtx_scale.trainer.goodput import read
from vtx_scale.trainer.lines import written

LIMIT = 15  # system.timeout, seconds
KEYS = ("system.workers=0", "system.strategy=fsdp", "checkpoint.every=25")
BATCH = 16  # samples a step, every one valid
# the head last: its Ray takes long to come back, and the run goes on meanwhile
SHORT = ("a worker killed", "the driver killed", "a power cut", "the head crashed")


@pytest.fixture
def struck(tmp_path, monkeypatch):
    """A cluster and its bucket, and what makes a run on it that faults strike."""
    for word in ("nodes", "redis", "s3", "ray"):
        need(word)
    with bed(tmp_path / "bed", redis=True) as up:
        for name, value in up.server.environment().items():
            monkeypatch.setenv(name, value)
        url = filled(up.server, tmp_path)

        def make(steps: int, seed: int, faults: tuple[str, ...]) -> None:
            run = f"{url}/run"
            watcher = Watcher(up, url.removeprefix("s3://"), "run")
            watcher.start()
            chaos = Chaos(up, url, run, tmp_path / "bed" / "logs", seed)
            begun = time.time()
            try:
                keys = (*KEYS, f"system.timeout={LIMIT}", f"steps={steps}", "system.world=2")
                chaos.begin("clip_vit_b32", *keys)
                for name in faults:
                    chaos.fault(name)
                code = chaos.supervisor.wait(600)
                assert code == 0, (code, chaos.past, chaos.logs)
            finally:
                watcher.ended.set()
                watcher.join()
                if chaos.supervisor is not None:
                    chaos.supervisor.kill()
            watcher.look()
            took = time.time() - begun
            spent = read(place_at(run))
            print({cause: round(seconds, 1) for cause, seconds in spent.seconds.items()})
            assert abs(sum(spent.seconds.values()) - spent.wall) < 0.01 * spent.wall, spent
            assert 0.7 * took < spent.wall < took, (spent, took)
            train_on_ranks(tmp_path / "run", 2, "fsdp", f"data.shards={tmp_path / 'toy'}", *keys)
            assert_same(run, tmp_path / "run", steps)
            assert not watcher.changed
            epochs = watcher.epochs()
            assert epochs == sorted(epochs) and len(epochs) > len(faults), epochs

        yield make


def assert_same(run: str, folder, steps: int) -> None:
    """Every step once with the same samples, losses and norms; the same bits at the end."""
    rows = [written(at / "metrics.jsonl") for at in (place_at(run), folder)]
    found, wanted = (
        [(r["step"], r["samples"], r["loss"], r["grad_norm"]) for r in of] for of in rows
    )
    assert [row[:2] for row in found] == [(s, s * BATCH) for s in range(1, steps + 1)]
    assert found == wanted
    found, wanted = (Tensors(s, newest(s)) for s in map(checkpoints_of, (place_at(run), folder)))
    assert set(found.keys()) == set(wanted.keys())
    assert all((found.tensor(k) == wanted.tensor(k)).all() for k in wanted.keys())


@pytest.mark.services
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_four_faults_leave_no_trace(struck):
    struck(1200, 20, SHORT)


@pytest.mark.full
@pytest.mark.timeout(7200)
def test_twenty_faults_leave_no_trace(struck):
    """Each at least once, in an order of chance, which is printed."""
    seed = secrets.randbelow(1 << 16)
    chance, all_of_them = Random(seed), list(FAULTS)
    faults = [*all_of_them, *chance.choices(all_of_them, k=20 - len(all_of_them))]
    chance.shuffle(faults)
    print(f"seed {seed}: {faults}")
    struck(6000, seed, tuple(faults))
