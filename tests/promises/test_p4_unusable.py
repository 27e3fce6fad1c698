"""P4: a run in which nothing can be used does not finish, and says what the samples have; what was
masked is counted at the end.
"""

import os
from pathlib import Path

import pytest

from tests import slow
from tests.data_pipeline.make import jpeg
from tests.ranks import on_ranks
from tests.runs import lines, smoke
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.tools.shards import write_shard
from vtx_scale.launch import override, recipes, worker
from vtx_scale.launch.prepare import prepare_folder, refuse
from vtx_scale.trainer import output
from vtx_scale.trainer.control import BadLimit


def sentences(recipe: dict, folder: Path, paths: list[str]) -> tuple[int, list[str]]:
    """The worker's code and all that this rank says to people."""
    recipes.let_import(paths)
    heard: list[str] = []
    output.on_stderr = heard.append  # the process is this cell's own
    code = worker.work(override.from_dict(recipe), folder, message=heard.append)
    return code, heard


def trained(folder: Path, shards: Path, *keys: str, recipe: str, world: int = 1):
    slow.must_be_marked()
    strategy = "single" if world == 1 else "ddp"
    run = smoke(
        f"data.shards={shards}",
        "data.val_shards=",
        f"system.strategy={strategy}",
        "checkpoint.every=0",
        *keys,
        recipe=recipe,
    )
    prepare_folder(run, folder, refuse(run, folder, world))
    out = on_ranks(world, sentences, override.to_dict(run), folder, recipes.STRANGERS)
    assert len({code for code, _ in out}) == 1
    return out[0]


def shard(folder: Path, n: int, members) -> Path:
    folder.mkdir()
    write_shard(folder / "0.tar", [(f"{i:05d}", members(i)) for i in range(n)])
    return folder


UNUSABLE = {
    "compound names": ("clip_vit_b32", lambda i: {"in.jpg": jpeg(i), "out.txt": b"a"}, "in.jpg"),
    "classes for captions": ("clip_vit_b32", lambda i: {"jpg": jpeg(i), "cls": b"1"}, "cls, jpg"),
    "captions for classes": (
        "vit_b16_imagenet",
        lambda i: {"jpg": jpeg(i), "txt": b"a"},
        "jpg, txt",
    ),
    "no pictures": ("dino_vit_s16", lambda i: {"npy": b"123", "txt": b"a"}, "npy, txt"),
    "broken pictures": ("clip_vit_b32", lambda i: {"jpg": jpeg(i)[:90], "txt": b"a"}, "jpeg_"),
    "classes beyond": (
        "vit_b16_imagenet",
        lambda i: {"jpg": jpeg(i), "cls": b"%d" % (i + 4)},
        "label (",
    ),
    "no words": ("dalle_12b", lambda i: {"jpg": jpeg(i), "txt": b" \n"}, "text"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "world"), [*((k, 1) for k in UNUSABLE), *((k, 2) for k in list(UNUSABLE)[:2])]
)
def test_a_run_of_nothing_ends(tmp_path, kind, world):
    """With 2, with what the samples have, without a checkpoint of initial weights."""
    recipe, members, words = UNUSABLE[kind]
    folder = tmp_path / "run"
    shards = shard(tmp_path / "shards", 24, members)
    keys = ["objective.net.classes=4"] if recipe == "vit_b16_imagenet" else []
    code, heard = trained(folder, shards, *keys, recipe=recipe, world=world)
    assert code == 2, heard
    (sentence,) = [line for line in heard if line.startswith("vtx: ")]
    assert "None of the first" in sentence and words in sentence, sentence
    assert not any((folder / "checkpoints").glob("step-*"))
    assert {e["kind"] for e in lines(folder / "ledger.jsonl")} >= {"sample"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch", "steps", "done"), [(4, 12, 9), (1, 40, 9), (64, 3, 0), (8, 12, 7), (4, 3, 2)]
)
def test_it_ends_early(tmp_path, batch, steps, done):
    """By the tenth step, by 64 samples, and at the latest at the end."""
    folder = tmp_path / "run"
    shards = shard(tmp_path / "shards", 100, lambda i: {"jpg": jpeg(i), "cls": b"1"})
    keys = (f"global_batch={batch}", f"steps={steps}")
    code, _ = trained(folder, shards, *keys, recipe="clip_vit_b32")
    assert code == 2
    rows = lines(folder / "metrics.jsonl") if done else []
    assert [r["step"] for r in rows] == list(range(1, done + 1))
    assert all(r["loss"] is None and r["samples"] == 0 for r in rows)  # no number, no 0.0


@pytest.mark.slow
def test_steps_without_a_sample_are_skipped(tmp_path):
    """Three quarters of the samples are bad and a batch is one: the run finishes, however many
    stood in a row, and says how many were masked and why.
    """
    folder = tmp_path / "run"
    shards = shard(
        tmp_path / "shards",
        40,
        lambda i: {"jpg": jpeg(i)} | ({"txt": b"a"} if i % 4 == 0 else {}),
    )
    keys = ("global_batch=1", "steps=40", "system.skip_limit=0", "schedule.warmup=0")
    code, heard = trained(folder, shards, *keys, recipe="clip_vit_b32")
    assert code == 0, heard
    skips = [e for e in lines(folder / "ledger.jsonl") if e["kind"] == "skip"]
    assert len(skips) == 30 and {e["reason"] for e in skips} == {"no valid sample"}
    rows = lines(folder / "metrics.jsonl")
    assert rows[-1]["samples"] == 10
    assert {r["step"] for r in rows if r["loss"] is None} == {e["step"] for e in skips}
    (last,) = [line for line in heard if "were masked" in line]
    assert "30 of 40 slots were masked (30 member_missing)" in last
    assert os.path.getsize(folder / "log.txt")


@pytest.mark.parametrize(
    ("bad", "valid", "ends"), [(99, 1, False), (100, 1, False), (101, 1, True)]
)
def test_the_limit_of_fewer_samples(bad, valid, ends):
    """Of fewer than 10,000 slots a share of 0.01 is 100 bad ones."""
    limit = BadLimit(0.01)
    if ends:
        with pytest.raises(UserError, match="more than data.bad_limit"):
            limit.add(bad, valid)
    else:
        limit.add(bad, valid)


def test_a_resumed_run_remembers_its_valid_samples():
    """Nothing valid since the resume is no run of nothing."""
    limit = BadLimit(1.0, valid=5, slots=640, steps=20)
    for _ in range(30):
        limit.add(8, 0)
    with pytest.raises(UserError, match="None of the first 80"):
        BadLimit(1.0, valid=0, slots=72, steps=9).add(8, 0)
