"""P3, committed whole or not there: at every moment of a save, each checkpoint that has its name is
one that opens.
"""

import json
import os
import shutil
import threading
from dataclasses import replace

import pytest
import torch

from tests.runs import COLOUR, train_on_ranks
from tests.skips import saved
from vtx_scale.checkpoints import write
from vtx_scale.checkpoints.read import Tensors, listing, load, verify
from vtx_scale.checkpoints.write import Writer, prune
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.distributed.sharding import Slice


def slices(value, rank=0, world=1):
    """Rows of a matrix, cut over ranks, and a vector that every rank holds."""
    rows = 6 // world
    here = torch.full((rows, 4), float(value)) + rank
    vector = torch.arange(5.0) + value
    return [
        Slice("param/a", (6, 4), ((rank * rows, (rank + 1) * rows), (0, 4)), here),
        Slice("param/b", (5,), ((0, 5),), vector, world, rank),
    ]


def save(folder, step, world=1, keep=2):
    writers = [Writer(folder, r, world, "a", keep, patience=20) for r in range(world)]
    for r, writer in enumerate(writers):
        writer.save(step, slices(step, r, world), {"applied": step})
    for writer in writers:
        writer.wait()
    assert [w.error for w in writers] == [None] * world


@pytest.mark.parametrize("world", [1, 2])
def test_a_checkpoint_has_its_name_when_it_is_whole(tmp_path, monkeypatch, world):
    """A reader looks whenever something of a save reaches the disk."""
    folder, looks, lock = tmp_path / "checkpoints", [], threading.Lock()

    def looked(function):
        def then_look(*arguments, **more):
            with lock:
                looks.append(listing(folder, deep=True))
                out = function(*arguments, **more)
                looks.append(listing(folder, deep=True))
            return out

        return then_look

    monkeypatch.setattr(write, "write_synced", looked(write.write_synced))
    monkeypatch.setattr(write, "save_file", looked(write.save_file))
    monkeypatch.setattr(write, "failpoint", looked(lambda name: None))
    monkeypatch.setattr(os, "rename", looked(os.rename))
    for step in (3, 6, 9):
        save(folder, step, world, keep=9)
    assert len(looks) >= 3 * (2 * 3 * world + 2 * 4), "a reader did not look often enough"
    assert all(row["valid"] for look in looks for row in look), [
        row["reason"] for look in looks for row in look if not row["valid"]
    ][:1]
    assert [r["step"] for r in listing(folder, deep=True)] == [3, 6, 9]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_what_several_ranks_wrote_comes_back(tmp_path, world):
    """Each rank's rows in their place; what all hold is stored once, by one of them."""
    save(tmp_path / "checkpoints", 4, world)
    path = tmp_path / "checkpoints" / "step-00000004"
    tables = [json.loads(p.read_text())["slices"] for p in sorted(path.glob("table-*.json"))]
    keys = sorted(row["key"] for rows in tables for row in rows)
    assert keys == ["param/a"] * world + ["param/b"] and len(tables) == world
    tensors, manifest = saved(tmp_path, 4)
    wanted = torch.cat([s[0].tensor for s in (slices(4, r, world) for r in range(world))])
    assert torch.equal(tensors["param/a"], wanted)
    assert torch.equal(tensors["param/b"], torch.arange(5.0) + 4)
    assert manifest["step"] == manifest["applied"] == 4 and len(manifest["files"]) == 2 * world


def test_a_save_takes_what_there_was_when_it_was_asked_for(tmp_path):
    """Staged inside the step: the next one may move the weights while the writer writes."""
    writer, own = Writer(tmp_path / "checkpoints", 0, 1, "a", 3), slices(1)
    writer.save(1, own, {})
    for s in own:
        s.tensor.fill_(-1.0)
    writer.wait()
    tensors, _ = saved(tmp_path, 1)
    assert torch.equal(tensors["param/a"], torch.ones(6, 4))
    assert torch.equal(tensors["param/b"], torch.arange(5.0) + 1)


def test_the_oldest_are_removed(tmp_path):
    for step in (2, 4, 6, 8):
        save(tmp_path / "checkpoints", step, keep=9)
    prune(tmp_path / "checkpoints", 3)
    assert [r["step"] for r in listing(tmp_path / "checkpoints", deep=True)] == [4, 6, 8]
    prune(tmp_path / "checkpoints", 3)
    assert len(listing(tmp_path / "checkpoints")) == 3


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    """Nothing of it is left out, and nothing of the model stays as it was."""
    save(tmp_path / "checkpoints", 3)
    path = tmp_path / "checkpoints" / "step-00000003"
    stored, (a, b) = Tensors(path, verify(path)), slices(0)
    load([a, b], stored)
    assert torch.equal(a.tensor, torch.full((6, 4), 3.0))
    more = replace(b, key="param/c")
    wider = replace(b, shape=(6,), box=((0, 6),), tensor=torch.zeros(6))
    turned = replace(a, shape=(4, 6), box=((0, 4), (0, 6)), tensor=torch.zeros(4, 6))
    for given, sentence in (
        ([a], "holds param/b and 0 more"),
        ([a, b, more], "has no param/c"),
        ([a, wider], r"param/b is \(5,\) in the checkpoint and \(6,\) in the model"),
        ([turned, b], r"param/a is \(6, 4\) in the checkpoint and \(4, 6\) in the model"),
    ):
        with pytest.raises(UserError, match=sentence):
            load(given, stored)


@pytest.mark.slow
def test_a_checkpoint_of_other_data_is_refused_wherever_it_lies(tmp_path):
    """Also where it was copied into the folder of a run, behind the back of run.json."""
    first, other = tmp_path / "first", tmp_path / "other"
    train_on_ranks(first, 1, "single", "steps=6", "system.leave_after=4", recipe=COLOUR, code=75)
    keys = ("steps=6", "seed=3")
    train_on_ranks(other, 1, "single", *keys, "system.leave_after=2", recipe=COLOUR, code=75)
    name = "step-00000004"
    shutil.copytree(first / "checkpoints" / name, other / "checkpoints" / name)
    train_on_ranks(other, 1, "single", *keys, recipe=COLOUR, code=2)
    shutil.rmtree(other / "checkpoints" / name)
    train_on_ranks(other, 1, "single", *keys, recipe=COLOUR)
