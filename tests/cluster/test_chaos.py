"""A run on a cluster of machines that is struck by faults at random moments is the run that it
would have been.
"""

import json
import secrets
import time
from pathlib import Path
from random import Random

import pytest

from tests.cluster.bed import bed, filled
from tests.cluster.chaos import FAULTS, HARMLESS, Chaos, Watcher
from tests.cluster.witness.witness import PACE, SAMPLES, SLOTS, ids_in
from tests.require import need
from tests.runs import train_on_ranks, vtx
from vtx_scale.checkpoints.read import Tensors, newest
from vtx_scale.launch.paths import checkpoints_of
from vtx_scale.launch.places import place_at
from vtx_scale.trainer.goodput import read
from vtx_scale.trainer.lines import written

RECIPE = f"{Path(__file__).parent / 'witness' / 'witness.py'}:pairs"
KEYS = ("system.workers=0", "system.strategy=fsdp", "system.world=2", "system.timeout=15")
KEYS += ("steps=100000", "checkpoint.every=5")
STARTS = ("restart", "hang", "node_lost")  # in the ledger: a round was over
# of each kind one: ranks, network, machine and driver together, head. The head last: its Ray takes
# long to come back, and the run goes on meanwhile
SHORT = ("a worker killed", "a node cut for 3 s", "a power cut of the driver's machine")
SHORT += ("the head crashed",)


@pytest.fixture
def struck(tmp_path, monkeypatch):
    """A cluster and its bucket, and what makes a run on it that faults strike."""
    for word in ("nodes", "redis", "s3", "ray"):
        need(word)
    with bed(tmp_path / "bed", redis=True, **{PACE: "0.2"}) as up:
        for name, value in up.server.environment().items():
            monkeypatch.setenv(name, value)
        url = filled(up.server, tmp_path, SAMPLES)

        def make(seed: int, faults: tuple[str, ...]) -> None:
            run, alone = f"{url}/run", tmp_path / "run"
            watcher = Watcher(up, url.removeprefix("s3://"), "run")
            watcher.start()
            chaos = Chaos(up, url, run, tmp_path / "bed" / "logs", seed)
            begun = time.time()
            try:
                chaos.begin(RECIPE, *KEYS)
                for name in faults:
                    chaos.fault(name)
                chaos.end()
            finally:
                watcher.ended.set()
                watcher.join()
                if chaos.supervisor is not None:
                    chaos.supervisor.kill()
            took = time.time() - begun
            watcher.look()
            assert_seen(chaos, watcher, took)
            shards = f"data.shards={tmp_path / 'toy'}"
            steps = newest(checkpoints_of(place_at(run)))["step"]
            leave = f"system.leave_after={steps}"
            train_on_ranks(alone, 2, "fsdp", shards, *KEYS, leave, recipe=RECIPE, code=75)
            assert_same(run, alone, steps)
            assert_each_once(run, shards, steps)

        yield make


def assert_seen(chaos: Chaos, watcher: Watcher, took: float) -> None:
    """One writer at any time, a cause for each second, no start for what is harmless."""
    rows, ledger = (
        written(place_at(chaos.run) / name) for name in ("metrics.jsonl", "ledger.jsonl")
    )
    for past in chaos.past:
        stood = past.stood([row["time"] for row in rows])
        print(f"{past.name}: at step {past.step}, no step for {stood:.1f} s")
        within = [e for e in ledger if past.begun < e.get("time", 0) < past.done]
        starts = [e for e in within if e["kind"] in STARTS]
        assert past.name not in HARMLESS or not starts, (past, starts)
    spent = read(place_at(chaos.run))
    print({cause: round(seconds, 1) for cause, seconds in spent.seconds.items()})
    assert abs(sum(spent.seconds.values()) - spent.wall) < 0.01 * spent.wall, spent
    assert 0.7 * took < spent.wall < took, (spent, took)
    assert not watcher.changed
    epochs = watcher.epochs()
    assert epochs == sorted(epochs) and len(epochs) > len(chaos.past), epochs
    assert len(set(epochs)) > 1, "no fault has changed the writer"


def assert_same(run: str, folder, steps: int) -> None:
    """Every step once with the same samples, losses and norms; the same bits at the end."""
    rows = [written(at / "metrics.jsonl") for at in (place_at(run), folder)]
    found, wanted = (
        [(r["step"], r["samples"], r["loss"], r["grad_norm"], ids_in(r)) for r in of] for of in rows
    )
    assert [row[:2] for row in found] == [(s, s * SLOTS) for s in range(1, steps + 1)]
    assert found == wanted
    found, wanted = (Tensors(s, newest(s)) for s in map(checkpoints_of, (place_at(run), folder)))
    assert set(found.keys()) == set(wanted.keys())
    assert all((found.tensor(k) == wanted.tensor(k)).all() for k in wanted.keys())


def assert_each_once(run: str, shards: str, steps: int) -> None:
    """What each step recorded is what `vtx data order` gives, and each epoch has each sample."""
    given = [ids_in(row) for row in written(place_at(run) / "metrics.jsonl")]
    words = ("--world", 1, "--steps", steps, "--json")
    done = vtx("data", "order", RECIPE, "--smoke", shards, *words)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line)["ids"] for line in done.stdout.splitlines()]
    assert [[number_of(id) for id in row] for row in rows] == given
    of_epoch = SAMPLES // SLOTS
    assert len(given) >= of_epoch
    for at in range(0, len(given) - of_epoch + 1, of_epoch):
        assert sorted(sum(given[at : at + of_epoch], [])) == list(range(SAMPLES))


def number_of(id: str) -> int:
    """Of a toy sample `toy-003.tar/003-00006`, through all four shards."""
    shard, at = id.rpartition("/")[2].split("-")
    return int(shard) * (SAMPLES // 4) + int(at)


@pytest.mark.services
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_four_faults_leave_no_trace(struck):
    struck(20, SHORT)


@pytest.mark.full
@pytest.mark.timeout(7200)
def test_twenty_faults_leave_no_trace(struck):
    """Each at least once, in an order of chance, which is printed."""
    seed = secrets.randbelow(1 << 16)
    chance, all_of_them = Random(seed), list(FAULTS)
    faults = [*all_of_them, *chance.choices(all_of_them, k=20 - len(all_of_them))]
    chance.shuffle(faults)
    print(f"seed {seed}: {faults}")
    struck(seed, tuple(faults))
