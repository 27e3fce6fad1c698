"""What is written into the memory of machines, and which of it a start takes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.ranks import gathered, on_ranks
from vtx_scale.checkpoints import memory as snapshots
from vtx_scale.checkpoints.format import folder_name, manifest_name, read_manifest, steps
from vtx_scale.checkpoints.memory import Snapshots
from vtx_scale.checkpoints.read import Tensors, load, verify
from vtx_scale.data_pipeline.storage import Folder
from vtx_scale.distributed.ranks import GroupRanks
from vtx_scale.distributed.sharding import Slice
from vtx_scale.launch import memory
from vtx_scale.launch.decided import Decision
from vtx_scale.launch.process import collectives
from vtx_scale.launch.recover import recovered

WORLD, EACH = 4, 2  # ranks, and ranks of a machine
EPOCH = 2  # of the lease
STATE = {"hash": "h", "decisions": []}


def slices(rank: int, value: float) -> list[Slice]:
    """A shard that this rank alone has, one that a rank of the other machine has too, and what all
    have.
    """
    shard, half, whole = (torch.full((n,), value) for n in (1000, 300, 10))
    shard += rank
    half += rank % EACH
    place = rank % EACH
    return [
        Slice("param/shard", (4000,), ((1000 * rank, 1000 * rank + 1000),), shard),
        Slice("param/half", (600,), ((300 * place, 300 * place + 300),), half, 2, rank // EACH),
        *(Slice(f"buffer/{k}", (10,), ((0, 10),), whole, WORLD, rank) for k in range(9)),
    ]


def start(folder: Path) -> tuple[int, list[Slice], Snapshots]:
    gathered()
    rank = int(os.environ["RANK"])
    node = rank // EACH
    here = folder / f"memory-{node}"
    here.mkdir(parents=True, exist_ok=True)
    os.environ |= {"NODE_RANK": str(node), "VTX_MEMORY": str(here)}
    held = slices(rank, 5.0)
    return (
        rank,
        held,
        Snapshots(here, f"node {node}", GroupRanks(), "a", held, epoch=EPOCH, timeout=30),
    )


def write(folder: Path, many=(5, 10)) -> list[str]:
    rank, _, kept = start(folder)
    before = collectives()
    for step in many:
        kept.save(step, slices(rank, float(step)), STATE)
    kept.wait()
    assert not kept.error and not kept.broken, (kept.error, kept.broken)
    assert kept.committed == many[-1]
    assert collectives() == before, "they count with those of the training"
    return [str(p.sent) for p in kept.parts]


def read(folder: Path, about: dict) -> tuple[int, bool] | None:
    """(step, whether the values are those of that step) of what a start takes."""
    rank, held, _ = start(folder)
    decisions = [Decision(*d) for d in about.get("decisions", [])]
    found = recovered(
        Folder(folder / "disk"),
        held,
        rank,
        epoch=about.get("epoch", EPOCH),
        digest=about.get("hash", "h"),
        decisions=decisions,
    )
    if found is None:
        return None
    stored, step = found
    load(held, Tensors(stored, read_manifest(stored, step)))
    same = all(
        torch.equal(a.tensor, b.tensor)
        for a, b in zip(held, slices(rank, float(step)), strict=True)
    )
    return step, same


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Both machines' memories with two snapshots, copied anew for each test."""
    kept = tmp_path_factory.mktemp("snapshots")
    assert "True" in on_ranks(WORLD, write, kept)[0]

    def fresh(folder):
        return shutil.copytree(kept, folder / "run")

    return fresh


def taken(folder, **about):
    rows = on_ranks(WORLD, read, folder, about)
    assert all(row == rows[0] for row in rows), rows
    return rows[0]


def test_a_snapshot_is_an_ordinary_checkpoint(written, tmp_path):
    """With the files of both machines beside one another, the ordinary reader finds it whole."""
    folder = written(tmp_path)
    assert steps(Folder(folder / "memory-0")) == steps(Folder(folder / "memory-1")) == [5, 10]
    shutil.copytree(folder / "memory-1", folder / "memory-0", dirs_exist_ok=True)
    assert verify(Folder(folder / "memory-0"), 10)["hash"] == "h"
    assert not list(folder.rglob("*.part"))


def test_the_newest_is_taken_and_the_others_go(written, tmp_path):
    folder = written(tmp_path)
    assert taken(folder) == (10, True)
    assert steps(Folder(folder / "memory-0")) == steps(Folder(folder / "memory-1")) == [10]


@pytest.mark.parametrize("lost", [0, 1])
def test_one_machines_memory_is_gone_and_then_the_others(written, tmp_path, lost):
    folder = written(tmp_path)
    shutil.rmtree(folder / f"memory-{lost}")
    assert taken(folder) == (10, True)
    shutil.rmtree(folder / f"memory-{1 - lost}")
    assert taken(folder) == (10, True)


def test_a_manifest_that_one_machine_did_not_come_to_write(written, tmp_path):
    folder = written(tmp_path)
    (folder / "memory-1" / manifest_name(10)).unlink()
    assert taken(folder) == (10, True)


def turn(path: Path) -> None:
    body = bytearray(path.read_bytes())
    body[-1] ^= 1
    path.write_bytes(body)


@pytest.mark.parametrize("kind", ["data-00000", "table-00000", "manifest"])
def test_of_a_damaged_file_the_other_copy_is_taken(written, tmp_path, kind):
    folder = written(tmp_path)
    (file,) = (folder / "memory-0" / folder_name(10)).glob(f"{kind}*")
    turn(file)
    assert taken(folder) == (10, True)


@pytest.mark.parametrize("kind", ["data", "table", "manifest"])
def test_where_no_copy_is_sound_the_one_before_is_taken(written, tmp_path, kind):
    folder = written(tmp_path)
    for file in folder.glob(f"memory-*/{folder_name(10)}/{kind}*"):
        turn(file)
    assert taken(folder) == (5, True)


def test_where_none_is_sound_the_disk_is_taken(written, tmp_path):
    folder = written(tmp_path)
    for file in folder.glob("memory-*/*/data*"):
        turn(file)
    assert taken(folder) is None
    assert not list(folder.glob("memory-*/*")), "what cannot be used takes no room"


def test_the_disk_is_as_new(written, tmp_path):
    folder = written(tmp_path)
    Folder(folder / "disk").put(manifest_name(10), b"{}")
    assert taken(folder) is None


@pytest.mark.parametrize(
    "about",
    [
        {"epoch": 1},  # what a later one wrote
        {"hash": "another"},
        {"decisions": [(1, 4, 80)]},  # a roll-back behind step 4
        {"decisions": [(1, 4, 0, "optim.lr", "1")]},
    ],
)
def test_what_is_not_of_this_run_as_it_is_now_is_not_taken(written, tmp_path, about):
    assert taken(written(tmp_path), **about) is None


def test_the_lease_was_advanced_meanwhile(written, tmp_path):
    """As a driver does that has lost a machine: what all ranks wrote before counts."""
    assert taken(written(tmp_path), epoch=EPOCH + 1) == (10, True)


def test_what_a_decision_leaves_as_it_is_may_be_taken(written, tmp_path):
    assert taken(written(tmp_path), decisions=[(1, 5, 80)]) == (5, True)


def broken_disk(folder: Path) -> tuple[str, int, int]:
    """A rank that cannot write once: that snapshot is dropped on all, the next is there."""
    rank, _, kept = start(folder)
    plain = snapshots.save_file

    def full(*a, **k):
        raise OSError(28, "No space left on device")

    snapshots.save_file = full if rank == 2 else plain
    kept.save(5, slices(rank, 5.0), STATE)
    kept.wait()
    error, first = kept.error, kept.committed
    snapshots.save_file = plain
    kept.save(10, slices(rank, 10.0), STATE)
    kept.wait()
    return error, first, kept.committed


def test_a_rank_without_room_costs_that_snapshot_alone(tmp_path):
    for error, first, second in on_ranks(WORLD, broken_disk, tmp_path):
        assert "No space left" in error and "rank 2" in error
        assert (first, second) == (-1, 10)
    assert steps(Folder(tmp_path / "memory-1")) == [10]


def drifted(folder: Path) -> str:
    rank, _, kept = start(folder)
    kept.save(5, slices(rank, 5.0 + (rank == 3)), STATE)
    kept.wait()
    return kept.error


def test_copies_that_differ_become_no_snapshot(tmp_path):
    assert all("should hold the same" in error for error in on_ranks(WORLD, drifted, tmp_path))
    assert not list(tmp_path.glob("memory-*/step-*"))


def little_room(folder: Path) -> str:
    snapshots.available = lambda path: 4000 if "memory-1" in str(path) else 1 << 30
    return start(folder)[2].room


def test_where_the_memory_does_not_hold_them_all_ranks_know(tmp_path):
    for reason in on_ranks(WORLD, little_room, tmp_path):
        assert reason.startswith("the machine of rank 2 would need")


ROOM = """
import sys, time
from pathlib import Path
from vtx_scale.launch.memory import Room
room = Room()
(room.path / "step-00000005").mkdir()
print(room.path, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_folder_goes_with_its_launcher(number):
    done = subprocess.Popen([sys.executable, "-c", ROOM], stdout=subprocess.PIPE, text=True)
    path = Path(done.stdout.readline().strip())
    assert path.is_dir() and path.stat().st_mode & 0o077 == 0
    done.send_signal(number)
    done.wait()
    until = time.monotonic() + 20
    while path.exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not path.exists()


@pytest.mark.parametrize("purpose", ["memory", "beats"])
def test_the_next_launcher_removes_what_a_dead_one_left(tmp_path, purpose):
    me, space = os.getuid(), memory.namespace()
    begun = memory.started(os.getpid())
    mine = f"vtx-{purpose}-{me}-{space}-{os.getpid()}-{begun}-99"
    gone = f"vtx-{purpose}-{me}-{space}-{os.getpid()}-{begun + 1}-0"  # its number was given again
    other = f"vtx-{purpose}-{me}-{space + 1}-1-1-0"  # of another container
    for name in (mine, gone, other, "vtx-memory-x"):
        (tmp_path / name).mkdir()
    new = memory.owned(purpose, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [mine, other, "vtx-memory-x", new.name]
    )


def test_a_run_without_snapshots_has_no_folder(tmp_path):
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"recipe": {"checkpoint": {"memory": 0}}}))
    assert memory.room_for(request) is None
    request.write_text(json.dumps({"recipe": {"checkpoint": {"memory": 5}}}))
    room = memory.room_for(request)
    assert room is not None and room.path.is_dir() and room.newest() == 0
    assert room.environment == {"VTX_MEMORY": str(room.path)}
    room.close()
    assert not room.path.exists()
