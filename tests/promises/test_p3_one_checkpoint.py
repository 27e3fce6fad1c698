"""P3, one checkpoint: any strategy and world opens it, damage is found, nothing executes."""

import json
import math
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

import vtx_scale
from tests.ranks import on_ranks
from tests.runs import (
    COLOUR,
    assert_same_bits,
    lines,
    losses,
    smoke,
    train,
    train_on_ranks,
)
from vtx_scale.checkpoints.format import Damaged, read_manifest, seal
from vtx_scale.checkpoints.read import Tensors, listing, newest, verify
from vtx_scale.launch import override, recipes, run_folder
from vtx_scale.launch.paths import checkpoints_of
from vtx_scale.launch.restore import fault_of

pytestmark = pytest.mark.slow

CELLS = [("single", 1), ("ddp", 2), ("fsdp", 2), ("ddp", 3), ("fsdp", 3), ("hsdp", 4)]
NEXT = list(zip(CELLS, CELLS[1:] + CELLS[:1], strict=True))
ALL = [(a, b) for a in CELLS for b in CELLS if a != b and (a, b) not in NEXT]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(strategy, world, recipe) -> a run folder with a checkpoint at step 6."""
    folders = {}

    def get(strategy, world, recipe):
        if (strategy, world, recipe) not in folders:
            folder = tmp_path_factory.mktemp(f"{strategy}-{world}") / "run"
            train_on_ranks(folder, world, strategy, "system.leave_after=6", recipe=recipe, code=75)
            folders[strategy, world, recipe] = folder
        return folders[strategy, world, recipe]

    return get


def read_and_write(recipe: dict, paths: list[str], source: Path, target: Path) -> None:
    """On a rank: load the newest checkpoint of `source` and save what was loaded,
    without a step.
    """
    from vtx_scale.checkpoints.write import Writer
    from vtx_scale.launch.build import build_objective
    from vtx_scale.launch.process import device_of, init_process_group
    from vtx_scale.launch.restore import restore
    from vtx_scale.strategies.apply import apply, strategy_of
    from vtx_scale.trainer.loop import Progress
    from vtx_scale.trainer.optim import optimizer_of
    from vtx_scale.trainer.precision import precision_of

    recipes.let_import(paths)
    run = override.from_dict(recipe)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = device_of(run.system)
    init_process_group(run.system, device, rank, world)
    strategy = strategy_of(run.system, world, device, None)
    objective = build_objective(run, torch.float32)
    apply(objective, strategy, run.system)
    optimizer = optimizer_of(strategy.leaves(), run.optim)
    for s in strategy.slices(optimizer):
        s.tensor.fill_(float("nan"))  # whatever is not loaded shows
    fingerprint = run_folder.read(source)["data"]
    progress = Progress()
    precision = precision_of(run.system, device)
    assert restore(source, run, fingerprint, strategy, optimizer, progress, precision)
    writer = Writer(checkpoints_of(target), rank, world, "again", 1)
    if world > 1:
        torch.distributed.barrier()  # rank 0 has cleared what it found
    there = newest(checkpoints_of(source)) or {}
    state = {k: v for k, v in there.items() if k not in ("format", "step", "files", "sum")}
    writer.save(progress.step, strategy.slices(optimizer), state)
    writer.wait()
    assert writer.error is None, writer.error


def assert_opens(saved, tmp_path, source, target, recipe):
    folder = saved(*source, recipe)
    run = override.to_dict(smoke(f"system.strategy={target[0]}", recipe=recipe))
    on_ranks(target[1], read_and_write, run, recipes.STRANGERS, folder, tmp_path / "again")
    assert_same_bits(folder, tmp_path / "again")


@pytest.mark.parametrize(("source", "target"), NEXT, ids=str)
def test_opens_under_the_next_strategy(saved, tmp_path, source, target):
    """Parameters, buffers, both moments and the follower, equal to the bit."""
    assert_opens(saved, tmp_path, source, target, COLOUR)


@pytest.mark.parametrize("source", CELLS, ids=str)
def test_each_value_is_stored_once(saved, source):
    """The boxes of a tensor add up to it, whichever ranks hold copies of which."""
    counts, shapes = Counter(), {}
    for table in newer(saved(*source, COLOUR)).glob("table-*.json"):
        for row in json.loads(table.read_bytes())["slices"]:
            counts[row["key"]] += math.prod(b - a for a, b in row["box"])
            shapes[row["key"]] = row["shape"]
    assert counts == {key: math.prod(shape) for key, shape in shapes.items()} and len(counts) > 10


@pytest.mark.full
@pytest.mark.parametrize("recipe", ["clip_vit_b32", COLOUR])
@pytest.mark.parametrize(("source", "target"), ALL + NEXT, ids=str)
def test_opens_under_every_other(saved, tmp_path, source, target, recipe):
    assert_opens(saved, tmp_path, source, target, recipe)


@pytest.fixture
def copy(saved, tmp_path):
    """A run folder of two ranks with checkpoints at 3 and 6, to be damaged."""
    base = saved("fsdp", 2, "clip_vit_b32")
    if not (base / "checkpoints" / "step-00000003").exists():
        other = base.parent / "three"
        train_on_ranks(other, 2, "fsdp", "system.leave_after=3", code=75)
        shutil.copytree(
            other / "checkpoints" / "step-00000003", base / "checkpoints" / "step-00000003"
        )
    return shutil.copytree(base, tmp_path / "run")


def newer(folder: Path) -> Path:
    return folder / "checkpoints" / "step-00000006"


@pytest.mark.parametrize(
    "file",
    [
        "data-00000.e0.safetensors",
        "data-00001.e0.safetensors",
        "table-00001.e0.json",
        "manifest.json",
    ],
)
@pytest.mark.parametrize("how", ["flip", "cut", "remove"])
def test_a_damaged_file_is_found_and_the_older_checkpoint_taken(copy, file, how):
    path = newer(copy) / file
    body = bytearray(path.read_bytes())
    if how == "flip":
        body[len(body) // 2] ^= 1
        path.write_bytes(body)
    elif how == "cut":
        path.write_bytes(body[:-1])
    else:
        path.unlink()
    storage = checkpoints_of(copy)
    with pytest.raises(Damaged):
        verify(storage, 6)
    lines: list[str] = []
    found = newest(storage, lines.append)
    assert found is not None and found["step"] == 3
    if (file, how) == ("manifest.json", "remove"):  # without one there is no checkpoint
        assert not lines and [r["step"] for r in listing(storage)] == [3]
        return
    assert len(lines) == 1 and file in lines[0]
    row = next(r for r in listing(storage, deep=True) if r["step"] == 6)
    assert not row["valid"] and file in row["reason"]


def test_a_run_goes_on_from_the_older_one_and_says_so(copy):
    data = newer(copy) / "data-00001.e0.safetensors"
    data.write_bytes(data.read_bytes()[:-7])
    done = train(copy, "system.world=1")
    assert "step-00000006 is damaged (data-00001.e0.safetensors has" in done.stderr
    assert "resumed at step 3 of 12" in done.stderr
    assert [e["kind"] for e in lines(copy / "ledger.jsonl")] == ["checkpoint_damaged"]
    assert len(losses(copy)) == 12
    assert read_manifest(checkpoints_of(copy), 12)["epoch"] == 1


@pytest.mark.parametrize("file", ["data-00000.e0.safetensors", "table-00001.e0.json"])
def test_ranks_share_the_reading_and_pass_over_alike(copy, file):
    """Whichever of them looks at the file that is damaged, and says so once."""
    path = newer(copy) / file
    body = bytearray(path.read_bytes())
    body[-9] ^= 1
    path.write_bytes(body)
    looked = []
    for rank in range(3):
        if (fault := fault_of(checkpoints_of(copy), 6, rank, 3)) != "":
            looked.append(rank)
            assert file in fault
    assert looked == [sorted(read_manifest(checkpoints_of(copy), 6)["files"]).index(file) % 3]
    train_on_ranks(copy, 3, "ddp")
    assert "resumed at step 3 of 12" in (copy / "log.txt").read_text()
    ledger = lines(copy / "ledger.jsonl")
    assert [e["kind"] for e in ledger] == ["checkpoint_damaged"] and file in ledger[0]["reason"]


def test_half_a_checkpoint_cannot_be_passed_off_as_whole(copy):
    """A table that lost a slice, sealed again with fitting digests:
    the parts no longer cover the model.
    """
    from vtx_scale.checkpoints.format import canonical, sha256_file

    table = newer(copy) / "table-00001.e0.json"
    body = json.loads(table.read_bytes())
    gone = next(s for s in body["slices"] if s["key"].startswith("exp_avg/"))
    body["slices"].remove(gone)
    table.write_bytes(canonical(body))
    manifest = read_manifest(checkpoints_of(copy), 6)
    manifest["files"][table.name] = {"size": table.stat().st_size, "sha256": sha256_file(table)}
    (newer(copy) / "manifest.json").write_bytes(seal(manifest))
    with pytest.raises(Damaged, match=re.escape(gone["key"])):
        Tensors(checkpoints_of(copy), verify(checkpoints_of(copy), 6)).tensor(gone["key"])


def test_a_manifest_cannot_name_files_elsewhere(copy):
    manifest = read_manifest(checkpoints_of(copy), 6)
    manifest["files"]["../../../run.json"] = {"size": 1, "sha256": "0"}
    (newer(copy) / "manifest.json").write_bytes(seal(manifest))
    with pytest.raises(Damaged, match="names the file"):
        verify(checkpoints_of(copy), 6)


def test_no_stored_file_is_a_pickle():
    """Stored tensors are read as safetensors; neither pickle nor torch.load is called anywhere.
    Ray's cloudpickle carries tasks to other processes, and is in no file.
    """
    root = Path(vtx_scale.__file__).parent.parent
    calls = re.compile(
        r"torch\.(load|save)\(|(?<!cloud)pickle\.(load|dump|Unpickler)|np\.load\([^)]*allow_pickle=True"
    )
    for package in ("launch", "cluster", "vtx_scale", "data_pipeline"):
        for file in (root / package).rglob("*.py"):
            assert not calls.search(file.read_text()), file


def test_files_of_a_run_are_of_known_kinds(saved):
    folder = saved("ddp", 2, COLOUR)
    kinds = {p.suffix for p in (folder / "checkpoints").rglob("*") if p.is_file()}
    assert kinds == {".safetensors", ".json"}


def test_retention(tmp_path):
    keys = ("checkpoint.every=2", "checkpoint.keep=2")
    train_on_ranks(tmp_path / "run", 1, "single", *keys, recipe=COLOUR)
    assert [r["step"] for r in listing(checkpoints_of(tmp_path / "run"))] == [10, 12]
