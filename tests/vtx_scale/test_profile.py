"""`system.profile`: what is recorded of which steps, where it goes, and that it changes nothing."""

import gzip
import json
import re
import threading
import time

import pytest
import torch

from tests.runs import assert_same_bits, lines, losses, smoke, train_on_ranks
from tests.storages import Memory
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.objects import ObjectPath
from vtx_scale.launch.checks import check
from vtx_scale.launch.override import recipe_hash
from vtx_scale.trainer import output
from vtx_scale.trainer.output import PLACE
from vtx_scale.trainer.profile import Profile

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def places(monkeypatch):
    monkeypatch.setattr(PLACE, "states", {name: output.State() for name in output.PLACES})
    monkeypatch.setattr(PLACE, "folder", None)


@pytest.fixture(params=["bucket", "disk"])
def folder(request, tmp_path):
    return ObjectPath(Memory(), "runs/a") if request.param == "bucket" else tmp_path


def steps_of(path) -> list[int]:
    """The steps that a trace tells of; each has a matrix product within it."""
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    whole = [e for e in events if e.get("ph") == "X"]
    products = [e["ts"] for e in whole if e["name"] == "aten::mm"]
    out = set()
    for e in whole:
        if found := re.fullmatch(r"step (\d+)", e["name"]):
            assert any(e["ts"] <= t <= e["ts"] + e["dur"] for t in products), e
            out.add(int(found[1]))
    return sorted(out)


def kept(folder) -> list[str]:
    """The names of what was written."""
    place = folder / "profile"
    return sorted(f.name for f in place.iterdir()) if place.exists() else []


def go(profile: Profile, first: int, last: int) -> None:
    """Steps of a run, which is then closed."""
    for step in range(first, last + 1):
        profile.begin(step)
        torch.ones(2, 2) @ torch.ones(2, 2)
        profile.end(step)
    profile.close()


@pytest.mark.parametrize(
    ("ran", "recorded"),
    [((1, 9), (3, 5)), ((4, 9), (4, 5)), ((1, 4), (3, 4)), ((5, 5), (5, 5)), ((6, 9), None)],
    ids=["whole", "resumed", "left", "one", "behind"],
)
def test_what_is_left_of_the_range_is_recorded(folder, ran, recorded):
    said = []
    go(Profile(folder, (3, 5), CPU, said.append), *ran)
    if recorded is None:
        assert not kept(folder) and not said
        return
    first, last = recorded
    name = f"steps-{first}-{last}.trace.json.gz"
    assert kept(folder) == [name]
    assert steps_of(folder / "profile" / name) == list(range(first, last + 1))
    steps = f"steps {first} to {last}" if first < last else f"step {last}"
    assert said == [f"what rank 0 did in {steps} is in {folder / 'profile'}"]
    assert not PLACE.states["profile"].dropped


def test_a_step_that_was_left_is_no_part_of_it(folder):
    profile = Profile(folder, (1, 9), CPU, print)
    profile.begin(1)
    profile.close()
    assert not kept(folder)
    profile = Profile(folder, (1, 9), CPU, print)
    profile.begin(1)
    profile.end(1)
    profile.begin(2)
    profile.close()
    assert kept(folder) == ["steps-1-1.trace.json.gz"]


def test_what_cannot_be_written_is_said_and_counted(tmp_path, capsys):
    (tmp_path / "profile").write_text("a file where a folder should be")
    said = []
    go(Profile(tmp_path, (1, 2), CPU, said.append), 1, 3)
    assert PLACE.states["profile"].dropped == 1 and not said
    assert capsys.readouterr().err.count("profile cannot be written") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="its memory can be recorded")
def test_what_cannot_be_recorded_is_said_and_counted(tmp_path, capsys):
    go(Profile(tmp_path, (1, 2), torch.device("cuda"), print), 1, 3)
    assert not torch.autograd._profiler_enabled()
    assert PLACE.states["profile"].dropped == 1 and not (tmp_path / "profile").exists()
    assert capsys.readouterr().err.count("profile cannot be written") == 1


def test_a_bucket_without_an_answer_holds_nobody_up(monkeypatch, capsys):
    class Silent(Memory):
        def put_file(self, name, path):
            released.wait(60)

    released = threading.Event()
    monkeypatch.setattr("vtx_scale.trainer.profile.PATIENCE", 0.2)
    began = time.monotonic()
    go(Profile(ObjectPath(Silent(), "runs/a"), (1, 2), CPU, print), 1, 3)
    assert time.monotonic() - began < 30
    released.set()
    assert "no answer within" in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_memory_of_a_gpu_is_written_too(folder):
    device = torch.device("cuda")
    profile = Profile(folder, (1, 1), device, print)
    profile.begin(1)
    held = torch.ones(1 << 20, device=device)
    profile.end(1)
    profile.close()
    file = folder / "profile" / "steps-1-1.memory.json.gz"
    found = json.loads(gzip.decompress(file.read_bytes()))
    sizes = [b["size"] for s in found["segments"] for b in s["blocks"]]
    assert held.numel() * 4 in sizes and any(found["device_traces"])


@pytest.mark.parametrize("steps", ["25..20", "0..5", "0..", "..5", "20", "all", "2..3..4", "-1..2"])
def test_a_wrong_range_is_refused(steps):
    with pytest.raises(UserError, match=r"^system\.profile=.*: give the first and the last step"):
        check(smoke(f"system.profile={steps}"))


def test_a_range_behind_the_end_is_refused():
    check(smoke("steps=24", "system.profile=24..30"))
    with pytest.raises(UserError, match=r"^system\.profile=25\.\.30: the run has 24 steps"):
        check(smoke("steps=24", "system.profile=25..30"))


def test_it_is_not_in_the_hash():
    assert recipe_hash(smoke("system.profile=2..3")) == recipe_hash(smoke())


@pytest.mark.slow
def test_a_profiled_run_is_the_same_run(tmp_path):
    """On two ranks, left within the range and resumed: bits, and what each start recorded."""
    plain, profiled = tmp_path / "plain", tmp_path / "profiled"
    keys = ("steps=8", "checkpoint.every=4")
    train_on_ranks(plain, 2, "ddp", *keys)
    more = (*keys, "system.profile=3..6")
    train_on_ranks(profiled, 2, "ddp", *more, "system.leave_after=4", code=75)
    train_on_ranks(profiled, 2, "ddp", *more)
    assert losses(profiled) == losses(plain)
    assert_same_bits(profiled, plain)
    names = ["steps-3-4.trace.json.gz", "steps-5-6.trace.json.gz"]
    assert kept(profiled) == names and not kept(plain)
    assert [steps_of(profiled / "profile" / name) for name in names] == [[3, 4], [5, 6]]


@pytest.mark.slow
def test_a_place_that_cannot_be_written_ends_nothing(tmp_path):
    tmp_path.joinpath("profile").write_text("a file where a folder should be")
    train_on_ranks(tmp_path, 1, "single", "steps=4", "system.profile=2..3")
    assert len(losses(tmp_path)) == 4
    dropped = [row for row in lines(tmp_path / "ledger.jsonl") if row["kind"] == "dropped"]
    assert [(row["place"], row["count"]) for row in dropped] == [("profile", 1)]
    assert (tmp_path / "log.txt").read_text().count("profile cannot be written") == 1
