"""A run that is still training, seen by others: whoever reads its newest checkpoint gets one."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.runs import environment, smoke
from vtx_scale import open_run
from vtx_scale.checkpoints.format import Damaged, folder_name, manifest_name, steps
from vtx_scale.checkpoints.read import Opened, Tensors, listing, read_newest, verify
from vtx_scale.checkpoints.write import Writer, prune
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.storage import Folder
from vtx_scale.distributed.sharding import Slice
from vtx_scale.launch import override
from vtx_scale.launch.build import build_objective
from vtx_scale.launch.initial import load_source
from vtx_scale.launch.paths import checkpoints_of
from vtx_scale.launch.run_folder import write_whole
from vtx_scale.strategies.single import Single

KEYS = (
    *(f"objective.image.{key}" for key in ("width=8", "mlp=16", "depth=1", "resolution=16")),
    *(f"objective.text.{key}" for key in ("width=8", "depth=1", "context=24")),
    "objective.image.patch=8",
    "objective.embed=8",
)


def recipe():
    return smoke("data.shards=/nowhere", *KEYS)


def model(run):
    """The objective on the CPU with zeros, and the strategy that holds it."""
    objective = build_objective(run, torch.float32)
    strategy = Single(torch.device("cpu"))
    strategy.prepare(objective)
    for s in strategy.slices():
        s.tensor.zero_()
    return objective, strategy


def publish(folder: Path, keep: int, least: int, until: float = 0.0) -> None:
    """Save and remove checkpoints as a training does, so many and until that time; every value
    of step N is N.
    """
    _, strategy = model(recipe())
    writer = Writer(checkpoints_of(folder), 0, 1, "one", keep)
    step = 0
    while step < least or time.time() < until:
        step += 1
        for s in strategy.slices():
            s.tensor.fill_(step)
        writer.save(step, strategy.slices(), {"strategy": "single", "world": 1})
        writer.wait()
        assert writer.error is None, writer.error


def run_folder_of(folder: Path) -> Path:
    write_whole(folder / "run.json", json.dumps({"recipe": override.to_dict(recipe())}))
    return folder


@pytest.fixture
def living(tmp_path):
    """A run folder in which another process saves as fast as it can and keeps one."""
    folder = run_folder_of(tmp_path / "run")
    code = (
        "import sys, time; from pathlib import Path\n"
        "from tests.vtx_scale.test_living_run import publish\n"
        "publish(Path(sys.argv[1]), 1, 1, time.time() + 40)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, folder], env=environment())
    try:
        while not steps(checkpoints_of(folder)):
            assert process.poll() is None
            time.sleep(0.02)
        yield folder
        assert process.poll() is None, "the writer ended by itself"
    finally:
        process.kill()
        process.wait()


def whole(values) -> int:
    """The step that all values of a checkpoint say."""
    found = {float(v) for t in values for v in t.double().unique()}
    assert len(found) == 1, found
    return int(found.pop())


def read_by_step(checkpoint: Opened) -> int:
    time.sleep(0.1)  # a slow disk: it is removed long before the first tensor is read
    step = whole(checkpoint.tensors().state().values())
    assert step == checkpoint.manifest["step"]
    return step


@pytest.mark.slow
def test_every_reader_gets_a_whole_checkpoint(living):
    def start_from(folder: Path) -> int:
        run = recipe()
        _, strategy = model(run)
        load_source(str(folder), run, strategy, lambda line: None)
        return whole([s.tensor for s in strategy.slices()])

    def opened(folder: Path) -> int:
        found = open_run(folder)
        assert whole(found.model.state_dict().values()) == found.step
        return found.step

    def rows(folder: Path) -> int:
        found = listing(checkpoints_of(folder), deep=True)
        assert all(row["valid"] for row in found), found
        return 0

    said: list[str] = []
    readers = {
        "open_run": opened,
        "init.from": start_from,
        "vtx checkpoints --verify": rows,
        "slow": lambda f: read_newest(checkpoints_of(f), read_by_step, said.append),
    }
    failed, counts = [], dict.fromkeys(readers, 0)
    until = time.time() + 5
    while time.time() < until:
        for name, read in readers.items():
            try:
                assert read(living) is not None
                counts[name] += 1
            except Exception as e:
                failed.append(f"{name}: {type(e).__name__}: {e}")
    assert not failed, (len(failed), counts, sorted(set(failed))[:4])
    assert not said and min(counts.values()) >= 3, (said, counts)


def test_what_is_open_stays_readable_when_it_is_removed(tmp_path):
    folder = tmp_path / "run"
    publish(folder, 1, 2)
    storage = checkpoints_of(folder)
    step = max(steps(storage))
    with Opened(storage, step) as checkpoint:
        prune(storage, 0)
        assert not list((folder / "checkpoints").iterdir())
        assert whole(checkpoint.tensors().state().values()) == checkpoint.manifest["step"]
    with pytest.raises(Damaged):
        verify(storage, step)
    assert read_newest(storage, lambda c: c) is None


def test_one_that_goes_away_under_its_reader_gives_place_to_the_next(tmp_path):
    """As on a network file system, where a removed file cannot be read though it is open."""
    storage = checkpoints_of(tmp_path)
    publish(tmp_path, 3, 4)
    prune(storage, 2)
    older, newer = steps(storage)
    tried, said = [], []

    def use(checkpoint: Opened) -> int:
        tried.append(checkpoint.manifest["step"])
        if len(tried) == 1:
            os.rename(
                tmp_path / "checkpoints" / folder_name(checkpoint.step), tmp_path / "elsewhere"
            )
            raise OSError(116, "Stale file handle")
        return tried[-1]

    assert read_newest(storage, use, said.append) == older
    assert tried == [newer, older] and not said


def test_a_listing_that_misses_both_is_made_once_more(tmp_path, monkeypatch):
    """The one goes before it is seen, and the next comes behind."""
    storage = checkpoints_of(tmp_path)
    publish(tmp_path, 1, 1)
    listings = iter([[]])
    monkeypatch.setattr(
        "vtx_scale.checkpoints.read.steps", lambda storage: next(listings, steps(storage))
    )
    assert read_newest(storage, lambda c: c.manifest["step"]) == 1


def test_a_folder_that_never_holds_still_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("vtx_scale.checkpoints.read.PAUSES", (0.0, 0.0, 0.0))
    storage, step = Folder(tmp_path), [1]
    storage.put(manifest_name(1), b"")

    def use_nothing(checkpoint):
        raise AssertionError

    def moving(storage):
        storage.delete(manifest_name(step[0]))
        step[0] += 1
        storage.put(manifest_name(step[0]), b"")
        return [step[0] - 1]

    monkeypatch.setattr("vtx_scale.checkpoints.read.steps", moving)
    with pytest.raises(UserError, match="checkpoint.keep"):
        read_newest(storage, use_nothing)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (5, 3), (4, 3, 2), (2, 1, 3, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_any_box_is_what_was_saved(tmp_path, shape, dtype):
    """Against indexing, from parts that were cut anywhere."""
    generator = torch.Generator().manual_seed(len(shape))
    value = torch.randint(0, 2, shape, generator=generator).to(dtype)
    cut = shape[0] // 2 if shape else 0
    parts = [(0, cut), (cut, shape[0])] if shape else [None]
    slices = [
        Slice("param/x", shape, box_of(part, shape), value[slice(*part)] if part else value)
        for part in parts
    ]
    storage = Folder(tmp_path)
    writer = Writer(storage, 0, 1, "one", 1)
    writer.save(1, slices, {})
    writer.wait()
    assert writer.error is None
    stored = Tensors(storage, verify(storage, 1))
    assert torch.equal(stored.tensor("param/x"), value)
    for _ in range(10):
        box = []
        for n in shape:
            a, b = sorted(torch.randint(0, n + 1, (2,), generator=generator).tolist())
            box.append((a, max(b, min(n, a + 1))) if a < n else (n - 1, n))
        out = torch.empty([b - a for a, b in box], dtype=dtype)
        stored.fill("param/x", tuple(box), out)
        assert torch.equal(out, value[tuple(slice(a, b) for a, b in box)])


def box_of(part, shape):
    return () if part is None else (part, *((0, n) for n in shape[1:]))


def test_a_checkpoint_of_many_files_needs_no_descriptor_each(tmp_path, monkeypatch):
    publish(tmp_path, 1, 2)
    storage = checkpoints_of(tmp_path)
    monkeypatch.setattr("resource.getrlimit", lambda kind: (2, 2))
    with Opened(storage, steps(storage)[-1]) as checkpoint:
        assert len(checkpoint.files) == 1
        assert whole(checkpoint.tensors().state().values()) == checkpoint.manifest["step"]
