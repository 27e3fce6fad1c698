"""The batch scripts of `vtx submit --to slurm`, run as written by a real Slurm of two nodes."""

import os
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.require import need
from tests.runs import assert_same_bits, environment, losses, train_on_ranks, vtx
from tests.slurm import slurm
from vtx_scale.checkpoints.format import steps
from vtx_scale.launch.paths import checkpoints_of

STEPS, KILLED, EVERY = 400, 60, 20
KEYS = ("system.workers=1", f"steps={STEPS}", f"checkpoint.every={EVERY}")
OURS = {
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "VTX_MASTER_ADDR": "127.0.0.1",  # s1 and s2 are names of nodes, and none of hosts
}


@pytest.fixture
def bed():
    need("slurm")
    with slurm() as running:
        yield running


def written(folder: Path, *more: str) -> str:
    done = vtx("submit", "clip_vit_b32", "--smoke", "--run", folder, "--to", "slurm", *more, *KEYS)
    assert done.returncode == 0, done.stderr
    return done.stdout


def submitted(bed, script: str, **more: str) -> SimpleNamespace:
    """A job of a script, as `sbatch` takes it."""
    file = bed.at / "job.sh"
    file.write_text(script)
    answer = bed.ask("sbatch", "--time=20", str(file), **environment(OURS), **more)
    assert answer.startswith("Submitted batch job "), answer + bed.logs()
    number = answer.split()[-1]
    out = bed.at / f"vtx-run-{number}.out"
    return SimpleNamespace(number=number, text=lambda: out.read_text() if out.exists() else "")


def count(folder: Path) -> int:
    """Lines of the metrics by now."""
    file = folder / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_rank_killed_then_the_warning_then_queued_again(bed, tmp_path):
    """The curve and every tensor are those of the run that nobody disturbed."""
    folder = tmp_path / "run"
    train_on_ranks(tmp_path / "undisturbed", 2, "auto", *KEYS)
    (tmp_path / "once").mkdir()
    kill = {"VTX_KILL": f"backward-{KILLED}:1", "VTX_KILL_ONCE": str(tmp_path / "once")}
    job = submitted(bed, written(folder, "--nodes", "2"), **kill)
    # in the allocation: srun starts the ranks again from what is saved

    def reached() -> bool:
        return count(folder) > KILLED + EVERY or bed.state(job.number) == "FAILED"

    bed.until(reached, "no second start", 300)
    assert "srun ended with 137 (restart 0 of 3)" in job.text()
    assert f"resumed at step {KILLED - EVERY} of {STEPS}" in job.text()
    bed.ask("scancel", "--signal=USR1", job.number)
    bed.until(lambda: bed.state(job.number) == "PENDING", f"not queued again\n{job.text()}", 120)
    left = max(steps(checkpoints_of(folder)))
    assert KILLED + EVERY < left < STEPS and f"left at step {left}" in job.text()
    # Slurm lets a job that was queued again wait for two minutes
    bed.ask("scontrol", "update", f"JobId={job.number}", "StartTime=now")
    bed.until(lambda: bed.state(job.number) == "COMPLETED", f"not finished\n{job.text()}", 300)
    assert f"resumed at step {left} of {STEPS}" in job.text()
    assert f"finished at step {STEPS}" in job.text()
    assert "died unexpectedly" not in job.text(), "a loader's tracker must not hear of the warning"
    assert losses(folder) == losses(tmp_path / "undisturbed")
    assert_same_bits(folder, tmp_path / "undisturbed")


@pytest.mark.full
@pytest.mark.timeout(600)
def test_who_is_asked_to_leave_by_the_run_folder_is_not_queued_again(bed, tmp_path):
    folder = tmp_path / "run"
    job = submitted(bed, written(folder, "--nodes", "2"))
    bed.until(lambda: count(folder) > 3, f"no step\n{job.text()}", 200)
    (folder / "control").mkdir(exist_ok=True)
    (folder / "control" / "stop").touch()
    bed.until(lambda: bed.state(job.number) not in ("RUNNING", "COMPLETING"), "does not leave", 120)
    assert bed.state(job.number) == "FAILED"
    assert bed.ask("scontrol", "show", "job", job.number).count("ExitCode=75:0") == 1
    assert 0 < max(steps(checkpoints_of(folder))) < STEPS


@pytest.mark.full
@pytest.mark.timeout(900)
def test_ray_in_the_allocation(bed, tmp_path):
    """The warning goes to the batch shell, whose driver has the ranks save and leave."""
    folder, keys = tmp_path / "run", ("--nodes", "2", "--ray", "system.world=2")
    train_on_ranks(tmp_path / "undisturbed", 2, "auto", *KEYS)
    job = submitted(bed, written(folder, *keys))
    bed.until(lambda: count(folder) > 3, f"no step\n{job.text()}", 200)
    bed.ask("scancel", "--batch", "--signal=USR1", job.number)
    bed.until(lambda: bed.state(job.number) == "PENDING", f"not queued again\n{job.text()}", 120)
    left = max(steps(checkpoints_of(folder)))
    assert 3 < left < STEPS
    bed.ask("scontrol", "update", f"JobId={job.number}", "StartTime=now")
    bed.until(lambda: bed.state(job.number) == "COMPLETED", f"not finished\n{job.text()}", 300)
    assert f"resumed at step {left} of {STEPS}" in job.text()
    assert losses(folder) == losses(tmp_path / "undisturbed")
    assert_same_bits(folder, tmp_path / "undisturbed")


@pytest.mark.full
@pytest.mark.timeout(600)
def test_ray_in_the_allocation_whose_port_is_taken(bed, tmp_path):
    """The job ends, and says why, where the head cannot start."""
    script = written(tmp_path / "run", "--nodes", "2", "--ray", "system.world=2")
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = str(taken.getsockname()[1])
        job = submitted(bed, script, VTX_MASTER_PORT=port, VTX_HEAD_WAIT="10")
        bed.until(lambda: bed.state(job.number) == "FAILED", f"goes on\n{job.text()}", 300)
    said = f"vtx: no head of Ray answers at 127.0.0.1:{port} after 10 s: "
    assert job.text().count(said) == 1 and f"{said}\n" not in job.text(), job.text()
    assert bed.ask("scontrol", "show", "job", job.number).count("ExitCode=1:0") == 1
