"""P3, committed whole or not there: at every moment of a save, what has a manifest opens."""

import contextlib
import errno
import json
import math
import os
import shutil
import threading
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from safetensors.torch import save_file as save_with_library

from tests.runs import COLOUR, train_on_ranks
from tests.skips import saved
from vtx_scale.checkpoints import tensor_file, write
from vtx_scale.checkpoints.format import sha256_file
from vtx_scale.checkpoints.read import Tensors, listing, load, verify
from vtx_scale.checkpoints.write import Writer, prune
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.storage import Folder
from vtx_scale.distributed.sharding import Slice
from vtx_scale.launch.paths import checkpoints_of


def slices(value, rank=0, world=1):
    """Rows of a matrix, cut over ranks, and a vector that every rank holds."""
    rows = 6 // world
    here = torch.full((rows, 4), float(value)) + rank
    vector = torch.arange(5.0) + value
    return [
        Slice("param/a", (6, 4), ((rank * rows, (rank + 1) * rows), (0, 4)), here),
        Slice("param/b", (5,), ((0, 5),), vector, world, rank),
    ]


def save(folder, step, world=1, keep=2, value=None, **more):
    """As all ranks of a run do; every value is the step, or the one that is given."""
    storage, value = Folder(folder), step if value is None else value
    writers = [Writer(storage, r, world, "a", keep, patience=20, **more) for r in range(world)]
    for r, writer in enumerate(writers):
        writer.save(step, slices(value, r, world), {"applied": step})
    for writer in writers:
        writer.wait()
    assert [w.error for w in writers] == [None] * world


@pytest.mark.parametrize("world", [1, 2])
def test_a_checkpoint_is_there_when_it_is_whole(tmp_path, monkeypatch, world):
    """A reader looks whenever something of a save reaches the disk."""
    folder, looks, lock = tmp_path / "checkpoints", [], threading.RLock()
    storage = Folder(folder)

    def looked(function):
        def then_look(*arguments, **more):
            with lock:
                looks.append(listing(storage, deep=True))
                out = function(*arguments, **more)
                looks.append(listing(storage, deep=True))
            return out

        return then_look

    monkeypatch.setattr(write, "save_file", looked(write.save_file))
    monkeypatch.setattr(write, "failpoint", looked(lambda name: None))
    for call in ("replace", "link", "unlink", "rename"):
        monkeypatch.setattr(os, call, looked(getattr(os, call)))
    for step in (3, 6, 9):
        save(folder, step, world, keep=2)
    assert len(looks) >= 3 * (2 * 4 * world + 2 * 3), "a reader did not look often enough"
    assert all(row["valid"] for look in looks for row in look), [
        row["reason"] for look in looks for row in look if not row["valid"]
    ][:1]
    assert [r["step"] for r in listing(storage, deep=True)] == [6, 9]


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
    writer, own = Writer(Folder(tmp_path / "checkpoints"), 0, 1, "a", 3), slices(1)
    writer.save(1, own, {})
    for s in own:
        s.tensor.fill_(-1.0)
    writer.wait()
    assert writer.error is None
    tensors, _ = saved(tmp_path, 1)
    assert torch.equal(tensors["param/a"], torch.ones(6, 4))
    assert torch.equal(tensors["param/b"], torch.arange(5.0) + 1)


def test_the_oldest_are_removed(tmp_path):
    for step in (2, 4, 6, 8):
        save(tmp_path / "checkpoints", step, keep=9)
    prune(checkpoints_of(tmp_path), 3)
    assert [r["step"] for r in listing(checkpoints_of(tmp_path), deep=True)] == [4, 6, 8]
    prune(checkpoints_of(tmp_path), 3)
    assert len(listing(checkpoints_of(tmp_path))) == 3


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    """Nothing of it is left out, and nothing of the model stays as it was."""
    save(tmp_path / "checkpoints", 3)
    storage = checkpoints_of(tmp_path)
    stored, (a, b) = Tensors(storage, verify(storage, 3)), slices(0)
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


def names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_what_is_no_checkpoint_is_cleared_by_the_next_start(tmp_path):
    """Of format 1 too; whatever is nobody's leftover stays, and so do all files of a checkpoint
    whose manifest tells nothing.
    """
    folder = tmp_path / "checkpoints"
    for step in (3, 6):
        save(folder, step)
    Folder(folder).put("step-00000006/manifest.json", b"torn")
    kept = ["notes.txt", "step-00000003/notes.txt", "step-x/data-00000.e1.safetensors"]
    left = [
        ".step-00000009.0123abcd/data-00000.safetensors",
        "step-00000003/data-00000.e9.safetensors",
        "step-00000003/data-00000.e0.safetensors.part",
        "step-00000009/data-00000.e1.safetensors",
        "step-00000009/table-00000.e1.json",
    ]
    before = names(folder)
    for name in kept + left:
        Folder(folder).put(name, b"x")
    Writer(Folder(folder), 1, 2, "a", 2)  # another rank does not
    assert names(folder) == sorted(before + kept + left)
    Writer(Folder(folder), 0, 2, "a", 2)
    assert names(folder) == sorted(before + kept)
    assert not (folder / "step-00000009").exists()


@pytest.mark.parametrize("damage", ["manifest", "data", "older epoch"])
def test_a_step_that_is_saved_again_takes_the_place_of_a_damaged_one(tmp_path, monkeypatch, damage):
    """Readers see the one or the other, and nothing of the first stays."""
    folder, looks = tmp_path / "checkpoints", []
    save(folder, 6, epoch=4)
    path = folder / "step-00000006"
    file = path / ("manifest.json" if damage == "manifest" else "data-00000.e4.safetensors")
    body = bytearray(file.read_bytes())
    body[len(body) // 2] ^= 1
    if damage != "older epoch":
        file.write_bytes(body)

    def look(name):
        if not name.startswith("staging"):
            looks.append(listing(Folder(folder), deep=True)[0])

    monkeypatch.setattr(write, "failpoint", look)
    save(folder, 6, epoch=5, value=7)
    assert [row["valid"] for row in looks] == [damage == "older epoch"] * 2 + [True]
    tensors, manifest = saved(tmp_path, 6)
    assert manifest["epoch"] == 5 and torch.equal(tensors["param/a"], torch.full((6, 4), 7.0))
    assert [p.name for p in sorted(path.iterdir())] == [
        "data-00000.e5.safetensors",
        "manifest.json",
        "table-00000.e5.json",
    ]


def test_another_starts_table_is_not_taken(tmp_path):
    """Ranks that were killed and started again under one lease: rank 1 has not written yet."""
    folder, storage = tmp_path / "checkpoints", Folder(tmp_path / "checkpoints")
    old = Writer(storage, 1, 2, "killed", 2)
    old.save(4, slices(1, 1, 2), {})
    old.wait()
    first, second = (Writer(storage, rank, 2, "again", 2, patience=20) for rank in (1, 0))
    old.save(4, slices(1, 1, 2), {})  # of before, and seen by the first rank
    old.wait()
    second.save(4, slices(4, 0, 2), {})
    time.sleep(0.1)
    assert second.busy and not (folder / "step-00000004" / "manifest.json").exists()
    first.save(4, slices(4, 1, 2), {})
    for writer in (first, second):
        writer.wait()
        assert writer.error is None
    assert torch.equal(saved(tmp_path, 4)[0]["param/a"][3:], torch.full((3, 4), 5.0))


def test_a_bit_that_turns_on_the_way_to_the_disk_is_found(tmp_path, monkeypatch):
    """Of the data, of the header, of a table: the save fails, and is no checkpoint."""
    plain = tensor_file.write_all
    for turned in (0, 1):
        pieces = []

        def write_all(file, piece, pieces=pieces, turned=turned):
            pieces.append(piece)
            if len(pieces) == turned + 1:
                piece = bytearray(piece)
                piece[9] ^= 4
                piece = memoryview(piece)
            plain(file, piece)

        monkeypatch.setattr(tensor_file, "write_all", write_all)
        writer = Writer(checkpoints_of(tmp_path), 0, 1, "a", 3)
        writer.save(1, slices(1), {})
        writer.wait()
        assert "what was written is not what is there" in (writer.error or "")
    monkeypatch.undo()

    class Turning(Folder):
        def put(self, name, body):
            if "table-" in name:
                body = body.replace(b"float32", b"float64")
            super().put(name, body)

    writer = Writer(Turning(tmp_path / "checkpoints"), 0, 1, "a", 3)
    writer.save(1, slices(1), {})
    writer.wait()
    assert "table-00000.e0.json does not match its own digest" in (writer.error or "")
    assert listing(checkpoints_of(tmp_path)) == []
    save(tmp_path / "checkpoints", 1)
    assert listing(checkpoints_of(tmp_path), deep=True)[0]["valid"]


def test_a_writer_that_is_stuck_is_replaced_and_commits_nothing(tmp_path):
    """Its copies stay its own while it sleeps; the next save is another thread's."""
    storage, awake, asleep = Folder(tmp_path / "checkpoints"), threading.Event(), threading.Event()

    class Stuck(Folder):
        def put_file(self, name, path):
            if "step-00000001" in name:
                asleep.set()
                awake.wait(30)
            super().put_file(name, path)

    writer = Writer(Stuck(storage.root), 0, 1, "a", 3, patience=0.2)
    writer.save(1, slices(1), {})
    assert asleep.wait(20) and writer.error is None or writer.error
    until = time.monotonic() + 20
    while writer.error is None and time.monotonic() < until:
        time.sleep(0.02)
    assert "writing takes longer than 0 s" in (writer.error or "")
    stuck = writer.thread
    writer.abandon()
    assert stuck.is_alive() and not writer.busy
    writer.patience = 20
    writer.save(2, slices(2), {})
    writer.wait()
    assert writer.error is None and writer.committed == 2
    awake.set()
    stuck.join()
    assert writer.error is None and [r["step"] for r in listing(storage, deep=True)] == [2]
    assert torch.equal(saved(tmp_path, 2)[0]["param/a"], torch.full((6, 4), 2.0))


@pytest.mark.parametrize("where", ["held", "put_if_absent"])
def test_a_dropped_save_that_wakes_late_costs_no_checkpoint(tmp_path, where):
    """It sleeps just before its manifest or while that is put, and others clear meanwhile: what it
    has then is nothing or whole, and what was there before stays.
    """
    awake, asleep, armed = threading.Event(), threading.Event(), threading.Event()

    def sleep():
        if armed.is_set():
            armed.clear()
            asleep.set()
            assert awake.wait(30)

    class Slow(Folder):
        def put_if_absent(self, name, body):
            if where == "put_if_absent":
                sleep()
            return super().put_if_absent(name, body)

    held = sleep if where == "held" else lambda: None
    writer = Writer(Slow(tmp_path / "checkpoints"), 0, 1, "a", 1, held=held, patience=0.2)
    writer._look = math.inf  # the lease is asked for by the thread alone
    writer.save(6, slices(6), {})
    writer.wait()
    armed.set()
    writer.save(7, slices(7), {})
    assert asleep.wait(20)
    time.sleep(0.3)
    thread = writer.thread
    writer.abandon()
    writer.clear()
    writer.error = None
    awake.set()
    thread.join()
    found = listing(Folder(tmp_path / "checkpoints"), deep=True)
    assert [r["step"] for r in found] == ([6] if where == "held" else [6, 7])
    assert all(r["valid"] for r in found), found
    assert writer.committed == 6 and writer.error is None
    writer.clear()
    assert (tmp_path / "checkpoints" / "step-00000007").exists() == (where != "held")


def test_what_cannot_be_removed_costs_no_save(tmp_path):
    """The save counts; what else can be removed is removed."""

    class Busy(Folder):
        def delete(self, name):
            if name.startswith("step-00000001/manifest"):
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), name)
            super().delete(name)

    storage = Busy(tmp_path / "checkpoints")
    writer = Writer(storage, 0, 1, "a", 1)
    for step in (1, 2, 3):
        writer.save(step, slices(step), {})
        writer.wait()
        assert writer.error is None and writer.committed == step
    assert [r["step"] for r in listing(storage, deep=True)] == [1, 3]
    with pytest.raises(OSError, match="step-00000001"):
        prune(storage, 1)


@pytest.mark.parametrize("after", range(4))
def test_a_removal_that_is_interrupted_leaves_no_half(tmp_path, after):
    """Killed behind any of its steps: the checkpoint is whole or none, and the next start clears
    the rest.
    """

    class Dying(Folder):
        count = 0

        def delete(self, name):
            if self.count == after:
                raise ZeroDivisionError
            self.count += 1
            super().delete(name)

    for step in (1, 2):
        save(tmp_path / "checkpoints", step)
    with contextlib.suppress(ZeroDivisionError):
        prune(Dying(tmp_path / "checkpoints"), 1)
    storage = checkpoints_of(tmp_path)
    rows = listing(storage, deep=True)
    assert [r["step"] for r in rows] == ([1, 2] if after == 0 else [2])
    assert all(r["valid"] for r in rows)
    Writer(storage, 0, 1, "next", 1)
    left = {p.name for p in storage.root.iterdir()}
    assert left == {f"step-{r['step']:08d}" for r in rows}


@pytest.mark.parametrize("shape", [(6, 4), (3,), (1,), (9,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.bfloat16])
def test_a_bit_that_turns_in_the_copy_is_found(tmp_path, monkeypatch, shape, dtype):
    """In memory, between the step and the writer: any bit, in the last odd bytes too."""
    plain = write.save_file
    tensor = torch.arange(math.prod(shape)).reshape(shape).to(dtype)
    own = [Slice("param/a", shape, tuple((0, n) for n in shape), tensor)]
    count = tensor.numel() * tensor.element_size()
    for at in (0, count // 2, count - 1):

        def save_file(tensors, path, at=at):
            tensors["param/a#0"].reshape(-1).view(torch.uint8)[at] ^= 16
            return plain(tensors, path)

        monkeypatch.setattr(write, "save_file", save_file)
        writer = Writer(checkpoints_of(tmp_path), 0, 1, "a", 3)
        writer.save(1, own, {})
        writer.wait()
        assert "the copy of param/a#0 changed in memory" in (writer.error or "")
        assert listing(checkpoints_of(tmp_path)) == []


@pytest.mark.parametrize("dtype", sorted(tensor_file.DTYPES))
def test_a_file_of_tensors_is_one_of_safetensors(tmp_path, dtype):
    """Against the library, both ways; shapes that are odd, empty or none."""
    kind = getattr(torch, dtype)
    wanted = {
        name: torch.randint(0, 2, shape).to(kind)
        for name, shape in {"b": (3, 5), "a": (), "empty": (0, 4), "c": (1,)}.items()
    } | {"wide": torch.arange(7, dtype=torch.float64), "bit": torch.tensor([True])}
    digest = tensor_file.save_file(wanted, tmp_path / "ours")
    assert digest == sha256_file(tmp_path / "ours")
    theirs = load_file(tmp_path / "ours")
    assert theirs.keys() == wanted.keys()
    assert all(torch.equal(theirs[k].double(), wanted[k].double()) for k in wanted)
    save_with_library(wanted, tmp_path / "theirs")
    with Folder(tmp_path).open("theirs") as file:
        stored = tensor_file.TensorFile("theirs", file)
        for name, tensor in wanted.items():
            rows = tensor.shape[0] if tensor.ndim else 1
            found = stored.rows(name, tuple(tensor.shape), tensor.dtype, 0, rows)
            assert torch.equal(found.double().reshape(tensor.shape), tensor.double())


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
