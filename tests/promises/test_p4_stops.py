"""P4: a rank that stands still, that runs out of memory or that fails: the run says which, and the
others do not wait for it.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes import rank_of
from tests.ranks import on_ranks
from tests.runs import COLOUR, environment, lines, log_of, losses, smoke, train, train_on_ranks
from tests.survivors import assert_none_survives
from vtx_scale.launch import override, recipes, worker
from vtx_scale.launch.prepare import prepare_folder, refuse
from vtx_scale.specs.imports import import_object

pytestmark = pytest.mark.slow


def test_a_rank_that_stands_still_is_started_again(tmp_path):
    """It is named at once, and after system.timeout seconds the stacks of all are kept; all go on
    from the newest checkpoint.
    """
    keys = ("steps=120", "checkpoint.every=20", "system.workers=0", "system.world=2")
    folder = tmp_path / "run"
    words = ["train", COLOUR, "--smoke", "--run", str(folder), *keys, "system.timeout=5"]
    command = [sys.executable, "-m", "vtx_scale.launch.cli", *words]
    with (tmp_path / "err").open("w") as err:
        run = subprocess.Popen(command, env=environment(), stderr=err)
    try:
        until = time.monotonic() + 90
        while not (folder / "checkpoints" / "step-00000040" / "manifest.json").exists():
            assert time.monotonic() < until and run.poll() is None, (tmp_path / "err").read_text()
            time.sleep(0.01)
        still = rank_of(run.pid, 1)
        os.kill(still, signal.SIGSTOP)
        assert run.wait(120) == 0, (tmp_path / "err").read_text()
    finally:
        run.kill()
    assert not Path(f"/proc/{still}").exists()
    assert_none_survives(folder)
    rows = lines(folder / "ledger.jsonl")
    restarts = [r for r in rows if r["kind"] == "restart"]
    assert len(restarts) == 1 and restarts[0]["step"] >= 40
    assert [r["rank"] for r in rows if r["kind"] == "stopped"] == [1]
    (hang,) = (r for r in rows if r["kind"] == "hang")
    assert hang["rank"] == 1 and 5 <= hang["seconds"] <= 10
    stacks = {p.name: p.read_text() for p in (folder / hang["stacks"]).iterdir()}
    assert set(stacks) == {"0.txt", "1.txt"}
    assert "collectives, in one" in stacks["0.txt"] and "in train" in stacks["0.txt"]
    assert "State:\tT" in stacks["1.txt"]
    log = log_of(folder)
    assert log.index("rank 1 on") < log.index("is stopped (process") < log.index("stacks of all")
    train(tmp_path / "one", *keys, recipe=COLOUR)
    assert losses(folder) == losses(tmp_path / "one")


def failing(recipe: dict, folder: Path, paths: list[str], error: type[Exception]) -> int:
    """The worker on a rank; at step 4 the last one's forward pass raises."""
    recipes.let_import(paths)
    run = override.from_dict(recipe)
    objective = import_object(run.objective.build)
    plain = objective.forward

    def forward(self, batch, step=0):
        if step == 3 and os.environ["RANK"] == str(self.context.ranks.world - 1):
            raise error("nothing left")
        return plain(self, batch, step)

    objective.forward = forward
    return worker.work(run, folder)


@pytest.mark.parametrize(("error", "code"), [(MemoryError, 4), (RuntimeError, 1)])
def test_a_rank_that_fails_takes_the_others_along(tmp_path, error, code):
    """With its own code and words; the run goes on from what was saved."""
    folder, keys = tmp_path / "run", ("steps=8", "checkpoint.every=2")
    run = smoke("system.strategy=fsdp", "system.timeout=20", *keys, recipe=COLOUR)
    prepare_folder(run, folder, refuse(run, folder, 2))
    began = time.monotonic()
    arguments = (override.to_dict(run), folder, recipes.STRANGERS, error)
    codes = on_ranks(2, failing, *arguments)
    assert codes[1] == code and codes[0] == 1, codes
    assert time.monotonic() - began < 60
    assert code == 4 or "nothing left" in log_of(folder)
    train_on_ranks(folder, 2, "fsdp", *keys, recipe=COLOUR)
    assert len(losses(folder)) == 8
