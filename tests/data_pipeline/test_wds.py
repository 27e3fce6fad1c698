"""webdataset at both ends."""

import json
import random
import re

import numpy as np
import pytest
import torch
import webdataset as wds
from torch.utils.data import DataLoader

from tests.data_pipeline.make import (
    Pixels,
    batches_of,
    drop_odd,
    fail_at_three,
    jpeg,
    longer,
    noisy,
    small_index,
    small_set,
    to_text,
)
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.loader import Loader
from vtx_scale.data_pipeline.read import ChunkReader
from vtx_scale.data_pipeline.tools.shards import write_shard
from vtx_scale.data_pipeline.wds import Source, Staged, Stages


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small_set(tmp_path_factory.mktemp("set"))


def silent(line):
    pass


def source_of(folder, batch=6, rank=0, world=1):
    return Source(str(folder), batch, seed=3, rank=rank, world=world, lanes=3, window=2, say=silent)


def keys_of(source, batches, workers=0, stages=None):
    """The keys of the next batches, through a DataLoader."""
    stages = stages or (wds.map(to_text), wds.batched(source.size))
    loader = DataLoader(
        source.pipeline(*stages),
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="forkserver" if workers else None,
    )
    out = []
    for batch in source.watch(loader):
        out.append([key for key, _ in zip(*batch, strict=True)])
        if len(out) == batches:
            return out


@pytest.fixture(scope="module")
def known(folder):
    """Eight batches as our own loader gives them: more than three epochs."""
    order, reader = source_of(folder).order, ChunkReader(source_of(folder).index)
    return [
        [reader.sample(g)["__key__"] for g in order.ids(order.slots(step, 6)).tolist()]
        for step in range(8)
    ]


def test_a_raw_sample_is_what_webdataset_gives(folder):
    ours = {s["__key__"]: s for s, _ in zip(source_of(folder), range(18), strict=False)}
    shards = sorted(str(p) for p in folder.glob("*.tar"))
    theirs = {s["__key__"]: s for s in wds.WebDataset(shards, shardshuffle=False)}
    assert len(ours) == len(theirs) == 15
    for key, raw in ours.items():
        assert type(raw) is dict and raw == {
            k: v for k, v in theirs[key].items() if k != "__local_path__"
        }


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_the_order_is_ours_with_any_number_of_workers(folder, known, workers):
    assert keys_of(source_of(folder), 8, workers) == known


def test_ranks_together_see_one_stream(folder, known):
    parts = [keys_of(source_of(folder, rank=r, world=2), 8) for r in range(2)]
    assert [a + b for a, b in zip(*parts, strict=True)] == known
    uneven = [keys_of(source_of(folder, rank=r, world=4), 8) for r in range(3)]
    assert [sum(x, []) for x in zip(*uneven, strict=True)] == known
    with pytest.raises(UserError, match="rank 3 of 4 has no sample"):
        source_of(folder, rank=3, world=4)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_start_in_the_middle_continues_exactly(folder, known, workers):
    """The state counts batches where they leave the loader, whatever its workers read ahead."""
    source = source_of(folder)
    assert keys_of(source, 3, workers) == known[:3]
    state = json.loads(json.dumps(source.state_dict()))
    assert state["position"] == 18 and set(state) == {"version", "position", "fingerprint"}
    assert keys_of(source, 2, 0) == known[3:5], "the same source goes on"
    other = source_of(folder)
    other.load_state_dict(state)
    assert keys_of(other, 3, 2 - workers) == known[3:6]
    loader = Loader(batches_of(small_index(folder), Pixels(), 6))
    with pytest.raises(UserError, match="fingerprint"):
        loader.load_state_dict({**state, "fingerprint": "0" * 32})
    with pytest.raises(UserError, match=state["fingerprint"]):
        Source(str(folder), 6, seed=4, lanes=3, window=2, say=silent).load_state_dict(state)


def test_another_batch_size_continues_at_the_same_sample(folder, known):
    source = source_of(folder)
    keys_of(source, 3)
    other = source_of(folder, batch=4)
    other.load_state_dict(source.state_dict())
    order = other.order
    expected = order.ids(np.arange(18, 22))
    (keys,) = keys_of(other, 1)
    names = {
        g: k
        for step in range(8)
        for g, k in zip(order.ids(order.slots(step, 6)).tolist(), known[step], strict=True)
    }
    assert (
        sorted(keys) == sorted(names[g] for g in expected.tolist())
        and other.state_dict()["position"] == 22
    )


def test_it_says_what_its_promise_needs(folder):
    lines = []
    Source(str(folder), 6, say=lines.append)
    assert len(lines) == 1 and "one sample for one sample" in lines[0]
    Source(str(folder), 6, rank=1, world=2, say=lines.append)
    assert len(lines) == 1, "one rank says it"


@pytest.mark.parametrize(
    "stage",
    [
        wds.shuffle(10),
        wds.select(bool),
        wds.slice(3),
        wds.rsample(0.5),
        wds.detshuffle(),
        wds.unbatched(),
    ],
)
def test_stages_known_to_break_the_promise_are_refused(folder, stage):
    with pytest.raises(UserError, match=r"wds\.\w+ drops, adds or reorders"):
        source_of(folder).pipeline(wds.map(to_text), stage, wds.batched(6))
    # of whole batches it may be
    source_of(folder).pipeline(wds.map(to_text), wds.batched(6), wds.shuffle(10))


def twice(data):
    for x in data:
        yield x
        yield x


def reads_ahead(data):
    held = []
    for x in data:
        held.append(x)
        if len(held) == 3:
            yield held.pop(0)


@pytest.mark.parametrize("stage", [wds.map(drop_odd), twice, reads_ahead])
def test_stages_found_to_break_the_promise_stop(folder, stage):
    with pytest.raises(UserError, match="left the source"):
        keys_of(source_of(folder), 3, 0, (stage, wds.map(to_text), wds.batched(6)))


def test_a_bad_sample_keeps_its_place(tmp_path):
    write_shard(
        tmp_path / "a.tar", [("x", {"jpg": jpeg(), "txt": b"x"}), ("y", {"jpg": b"", "txt": b"y"})]
    )
    source = Source(str(tmp_path), 2, say=silent)
    raw = {s["__key__"]: s for s, _ in zip(source, range(2), strict=False)}
    assert raw["y"] == {"__key__": "y", "__url__": str(tmp_path / "a.tar"), "__bad__": "empty"}
    assert raw["x"]["txt"] == b"x"
    with pytest.raises(UserError, match="holds no samples"):
        write_shard(tmp_path / "b" / "b.tar", [])
        Source(str(tmp_path / "b"), 2, say=silent)


# Stages inside our workers


def batches(folder, stages, batch=15, **more):
    return batches_of(small_index(folder), Staged(Pixels(), stages), batch, **more)


def test_stages_stand_in_front_of_a_reader(folder):
    plain = batches_of(small_index(folder), Pixels(), 15)[0]
    batch = batches(folder, [wds.map(longer), wds.rename(jpg="jpg", txt="txt")])[0]
    assert batch["valid"].all() and batch["ids"].tolist() == plain["ids"].tolist()
    assert (batch["data"]["length"] == plain["data"]["length"] + 2).all()
    assert torch.equal(batch["data"]["image"], plain["data"]["image"]), (
        "the reader's own numbers are as without stages"
    )


def test_a_stage_that_gives_nothing_masks_the_slot(folder):
    plain = batches_of(small_index(folder), Pixels(), 15)[0]
    for stages in ([wds.map(drop_odd)], [wds.select(drop_odd)]):
        batch = batches(folder, stages)[0]
        odd = [int(e["key"][-2:]) % 2 for e in batch["bad"]]
        assert len(odd) == 6 and all(odd) and {e["reason"] for e in batch["bad"]} == {"stage"}
        assert batch["ids"].tolist() == plain["ids"].tolist() and int(batch["valid"].sum()) == 9
        valid = batch["valid"]
        assert torch.equal(batch["data"]["image"][valid], plain["data"]["image"][valid])


def test_an_error_in_a_stage_masks_the_slot_and_is_told(folder):
    batch = batches(folder, [wds.map(fail_at_three)])[0]
    for entry in batch["bad"]:
        assert entry["reason"] == "stage_error"
        assert re.fullmatch(r"KeyError: 'three' \(make\.py:\d+\)", entry["detail"])
    assert {e["key"] for e in batch["bad"]} == {"0-03", "2-03"} and int(batch["valid"].sum()) == 13
    for stages, detail in (([wds.to_tuple("txt")], "1 x tuple"), ([twice], "2 x dict")):
        batch = batches(folder, stages)[0]
        assert not batch["valid"].any()
        assert {e["detail"] for e in batch["bad"]} == {f"{detail} came out, one dict is wanted"}


def test_what_stages_draw_belongs_to_the_sample(folder):
    """Noise from random, numpy and torch: the same in workers and here, another in the next epoch;
    afterwards the generators are as they were.
    """
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    was = random.random(), np.random.rand(), torch.rand(()).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    here = [b for b in Loader(batches(folder, [wds.map(noisy)], 5), stop=6)]
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == was
    loader = Loader(batches(folder, [wds.map(noisy)], 5), stop=6, workers=2)
    try:
        for a, b in zip(here, loader, strict=True):
            assert torch.equal(a["image"], b["image"]) and b.valid.all()
    finally:
        loader.close()
    plain = [b for b in Loader(batches_of(small_index(folder), Pixels(), 5), stop=6)]
    assert all(not torch.equal(a["image"], b["image"]) for a, b in zip(here, plain, strict=True))


def test_decoding_stages_cannot_run_code(tmp_path):
    """webdataset's own decoders unpickle some members; those never reach a stage."""
    write_shard(
        tmp_path / "a.tar",
        [("x", {"jpg": jpeg(), "txt": b"x", "pyd": b"cos\nsystem\n(S'false'\ntR."})],
    )
    keys = []

    def look(raw):
        keys.append(sorted(raw))
        return {**raw, "txt": raw["txt"].encode()}

    batch = batches(tmp_path, [wds.decode(only="txt"), wds.map(look)], 1)[0]
    assert batch["valid"].all() and keys == [["__key__", "__url__", "jpg", "txt"]]


@pytest.mark.parametrize("kind", [MemoryError, UserError])
def test_memory_and_our_own_errors_in_a_stage_are_no_fault_of_the_sample(folder, kind):
    def fail(raw):
        raise kind("in a stage")

    with pytest.raises(kind, match="in a stage"):
        batches(folder, [wds.map(fail)]).make(0)


@pytest.mark.parametrize(
    "stage", [wds.shuffle(5), wds.batched(2), wds.unbatched(), wds.slice(3), wds.detshuffle()]
)
def test_stages_that_have_nothing_to_work_on_are_refused(stage):
    with pytest.raises(UserError, match="one sample at a time"):
        Stages((stage,))
