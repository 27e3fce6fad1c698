"""P4, counts that end a run: what they remember, what sets them back. One writer a folder."""

import os
import signal

import pytest

from tests.runs import COLOUR, SMALL, lines, smoke, train_on_ranks, vtx
from vtx_scale.checkpoints.format import manifest_name, steps
from vtx_scale.checkpoints.lease import holder, newest
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.launch import local, worker
from vtx_scale.launch.paths import checkpoints_of, lease_of
from vtx_scale.launch.run_folder import acquire_lease
from vtx_scale.trainer.control import BadLimit
from vtx_scale.trainer.lines import truncate_logs_after


def ends(limit, bad, slots):
    """Whether a step with so many masked slots of all ends the run."""
    try:
        limit.add(bad, slots)
    except UserError as e:
        assert "were bad" in str(e)
        return True
    return False


def test_bad_samples_are_forgotten_behind_the_window():
    """Of the last 10,000 slots: as many bad ones as the limit allows go on for ever, one more
    within a window ends the run, and none of long ago counts.
    """
    limit = BadLimit(0.01)
    steps = [(bad, 5_000) for _ in range(50) for bad in (99, 0)]  # 4,950 in all
    assert not any(ends(limit, *step) for step in steps)
    assert not ends(limit, 1, 5_000) and ends(limit, 100, 5_000)
    late = BadLimit(0.01)
    assert not ends(late, 100, 5_000) and ends(late, 1, 4_999)


def launched(tmp_path, monkeypatch, starts):
    """The code of a launcher whose starts save a checkpoint at a step, or nothing, and then die;
    below 0: one that goes back removes later ones. After them one comes to the end.
    """
    coming = iter(starts)

    def once(*arguments, **more):
        step = next(coming, "end")
        if step == "end":
            return 0
        if step is not None:
            stored = checkpoints_of(tmp_path)
            for later in steps(stored) if step < 0 else ():
                stored.delete(manifest_name(later))
            stored.put(manifest_name(abs(step)), b"")
        return -signal.SIGKILL

    monkeypatch.setattr(local, "once", once)
    (tmp_path / "request").write_text("{}")
    return local.launch(tmp_path / "request", tmp_path, 2, lambda line: None)


def test_a_bucket_that_is_away_at_a_restart_is_waited_for(tmp_path, monkeypatch):
    answers, known = iter([0, OSError("away"), 10]), local.newest

    def newest(folder):
        answer = next(answers, 20)
        if isinstance(answer, OSError):
            raise answer
        return answer or known(folder)

    monkeypatch.setattr(local, "newest", newest)
    assert launched(tmp_path, monkeypatch, [10, 20]) == 0


@pytest.mark.parametrize(
    ("starts", "code"),
    [
        ([10, 20, 30, 40, 50, 60], 0),
        ([10, None, None, 20, None, None, 30, None, None], 0),
        ([10, None, None, None], 1),
        ([None, None, None], 0),
        ([None, None, None, None], 1),
        ([10, 10, 10, 10], 1),
        ([100, -60, 70, 80, 90], 0),
    ],
)
def test_progress_sets_a_launchers_failures_back(tmp_path, monkeypatch, starts, code):
    """It gives up after four starts in a row that saved nothing new, however many there were."""
    assert launched(tmp_path, monkeypatch, starts) == code
    restarts = [r for r in lines(tmp_path / "ledger.jsonl") if r["kind"] == "restart"]
    assert len(restarts) == len(starts) - (code == 1)


@pytest.mark.parametrize("name", ["metrics.jsonl", "ledger.jsonl", "evaluations.jsonl"])
def test_what_will_be_written_again_is_cut(tmp_path, name):
    """Lines of a step beyond the one that is resumed at; those without a step stay."""
    kept = ['{"kind":"fork"}', '{"step":1}', '{"step":4}', '{"step":3}']
    (tmp_path / name).write_text("\n".join([*kept, '{"step":5}', '{"step":60}', '{"st']))
    truncate_logs_after(tmp_path, 4)
    assert (tmp_path / name).read_text() == "\n".join(kept) + "\n"


def test_a_rank_of_another_launcher_takes_the_lease(tmp_path):
    """Under torchrun and srun rank 0 does what `vtx train` does before it starts ranks."""
    _, lease, epoch = worker.join(smoke(recipe=COLOUR), tmp_path, False, 0, 1)
    with pytest.raises(UserError, match=f"is being written by process {os.getpid()}"):
        acquire_lease(tmp_path)
    lease.close()
    acquire_lease(tmp_path).close()


def test_a_rank_that_is_refused_gives_the_lease_back(tmp_path):
    """Another run is in the folder: the process may live on, its lease must not."""
    run = smoke(recipe=COLOUR)
    worker.join(run, tmp_path, False, 0, 1)[1].close()
    checkpoints_of(tmp_path).put(manifest_name(1), b"")
    with pytest.raises(UserError, match="holds another run"):
        worker.join(smoke("optim.lr=7", recipe=COLOUR), tmp_path, False, 0, 1)
    epochs = lease_of(tmp_path)
    assert newest(epochs) == 2 and holder(epochs, 2)["state"] == "released"


def test_two_writers_are_refused_under_torchrun_too(tmp_path):
    """The environment that torchrun and srun give; the holder is this process."""
    folder = tmp_path / "run"
    with acquire_lease(folder):
        env = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        done = vtx("train", COLOUR, "--smoke", "--run", folder, *SMALL, env=env)
    assert done.returncode == 2, done.stderr
    assert f"is being written by process {os.getpid()}" in done.stderr
    assert not (folder / "run.json").exists() and not (folder / "metrics.jsonl").exists()


@pytest.mark.slow
def test_an_evaluation_that_was_due_is_made_up_for(tmp_path):
    """A start that ended between its save and its evaluation owes it; the next one owes nothing."""
    folder = tmp_path / "run"
    train_on_ranks(folder, 1, "single", recipe=COLOUR)
    once = lines(folder / "evaluations.jsonl")
    assert [r["step"] for r in once] == [12]
    for owed in (True, False):
        if owed:
            (folder / "evaluations.jsonl").write_text('{"step": 4, "name": "another"}\n')
        train_on_ranks(folder, 1, "single", recipe=COLOUR)
        assert lines(folder / "evaluations.jsonl")[1:] == once
