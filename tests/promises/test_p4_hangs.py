"""P4: a run that comes no further says which rank it is, where, and goes on; one that is only slow
is left alone.
"""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.processes import rank_of
from tests.runs import (
    COLOUR,
    assert_same_bits,
    environment,
    lines,
    losses,
    train,
    train_on_ranks,
)
from tests.survivors import assert_none_survives
from vtx_scale.distributed.phases import CAUSES
from vtx_scale.trainer.goodput import read
from vtx_scale.trainer.stragglers import WINDOW

pytestmark = pytest.mark.slow


def test_which_of_three_hangs(tmp_path):
    """In a step and in an evaluation, outside of all collectives; bits are those of a run that
    nothing happened to.
    """
    keys = ("checkpoint.every=4", "system.world=3", "system.timeout=5")
    folder, once = tmp_path / "run", tmp_path / "once"
    once.mkdir()
    env = {"VTX_HANG": "step-6:1,evaluate-12:2", "VTX_KILL_ONCE": str(once)}
    train(folder, *keys, env=env)
    assert_none_survives(folder)
    rows = [r for r in lines(folder / "ledger.jsonl") if r["kind"] == "hang"]
    where = [(r["rank"], r["phase"], r["finished"]) for r in rows]
    assert where == [(1, "step", 6), (2, "evaluate", 12)]
    for row in rows:
        assert 5 <= row["seconds"] <= 10
        stacks = {p.stem: p.read_text() for p in (folder / row["stacks"]).iterdir()}
        assert set(stacks) == {"0", "1", "2"}
        at = {rank for rank, stack in stacks.items() if "in failpoint" in stack}
        assert at == {str(row["rank"])}
    found = read(folder)
    assert sum(found.seconds.values()) == pytest.approx(found.wall, rel=0.01)
    assert found.seconds["detect"] >= 10
    train_on_ranks(tmp_path / "one", 3, "ddp", "checkpoint.every=4")
    assert losses(folder) == losses(tmp_path / "one")
    assert_same_bits(folder, tmp_path / "one")


def test_a_pause_and_what_is_slow_restart_nothing(tmp_path):
    """Three seconds of SIGSTOP are said and no more; samples that come to one rank, and an
    evaluation, that take longer than a collective may are no hang.
    """
    folder = tmp_path / "run"
    keys = ("steps=30", "system.world=2", "system.timeout=6", "system.workers=0")
    command = ["train", "clip_vit_b32", "--smoke", "--run", str(folder), *keys]
    env = environment({"VTX_SLOW": "data-20:0:9,evaluate:0:9,evaluate:1:9"})
    with (tmp_path / "err").open("w") as err:
        run = subprocess.Popen(
            [sys.executable, "-m", "vtx_scale.launch.cli", *command], env=env, stderr=err
        )
    try:
        until = time.monotonic() + 120
        while not (folder / "metrics.jsonl").exists() or len(lines(folder / "metrics.jsonl")) < 5:
            assert time.monotonic() < until and run.poll() is None, (tmp_path / "err").read_text()
            time.sleep(0.01)
        still = rank_of(run.pid, 1)
        os.kill(still, signal.SIGSTOP)
        time.sleep(3)
        os.kill(still, signal.SIGCONT)
        assert run.wait(180) == 0, (tmp_path / "err").read_text()
    finally:
        run.kill()
    kinds = [r["kind"] for r in lines(folder / "ledger.jsonl")]
    assert kinds.count("stopped") == 1 and not {"restart", "hang"} & set(kinds), kinds
    said = (tmp_path / "err").read_text()
    assert "rank 1 on" in said and "goes on after" in said
    assert not (folder / "stacks").exists()
    spent = read(folder).seconds
    assert spent["evaluate"] >= 9 and spent["data_wait"] >= 9


def test_every_second_of_a_run_that_is_killed_twice_has_a_cause(tmp_path):
    """Killed with its launcher, killed without, asked to leave, and resumed."""
    folder, once = tmp_path / "run", tmp_path / "once"
    once.mkdir()
    keys = ("steps=12", "checkpoint.every=4", "system.world=2")
    began = time.time()
    env = {"VTX_KILL": "step-7:0,step-11:1", "VTX_KILL_ONCE": str(once)}
    train(folder, *keys, "system.leave_after=5", env=env, recipe=COLOUR, code=75)
    time.sleep(2)
    train(folder, *keys, env=env, recipe=COLOUR)
    whole = time.time() - began
    rows = lines(folder / "events.jsonl")
    assert len({r["attempt"] for r in rows}) == 4
    for row in rows:
        if row["kind"] == "time":
            length = row["to"] - row["from"]
            assert sum(row["seconds"].values()) == pytest.approx(length, rel=0.01, abs=0.01)
    found = read(folder)
    assert set(found.seconds) <= set(CAUSES)
    assert sum(found.seconds.values()) == pytest.approx(found.wall, rel=0.01)
    # all but the start of the first launcher and the end of the last
    assert whole * 0.5 < found.wall < whole
    assert found.seconds["stopped"] >= 2 and found.seconds["down"] > 0
    assert found.seconds["start.import"] > 0.5 and 0 < found.share < 0.5


def test_a_rank_that_computes_slowly_is_named_once(tmp_path):
    """All compute for 40 ms, one of three for 80; nobody else is named, and the losses stay."""
    folder, keys = tmp_path / "run", (f"steps={4 * WINDOW + 2}", "checkpoint.every=0")
    slow = ",".join(f"backward:{rank}:{0.08 if rank == 1 else 0.04}" for rank in range(3))
    train(folder, *keys, "system.world=3", env={"VTX_SLOW": slow}, recipe=COLOUR)
    (row,) = (r for r in lines(folder / "ledger.jsonl") if r["kind"] == "straggler")
    assert row["rank"] == 1 and row["step"] == 3 * WINDOW and 1.4 < row["ratio"] <= 2.1, row
    assert row["host"]
    train_on_ranks(tmp_path / "one", 3, "ddp", *keys, recipe=COLOUR)
    assert losses(folder) == losses(tmp_path / "one")
    even = tmp_path / "one" / "ledger.jsonl"
    assert not even.exists() or "straggler" not in even.read_text()
