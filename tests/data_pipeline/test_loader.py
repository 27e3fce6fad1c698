"""Batches and the loader's edges; its promises stand in tests/promises/test_p1_data.py."""

import pickle

import numpy as np
import pytest
import torch

from tests.data_pipeline.make import Pixels, batches_of, small_index, small_set
from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.data_pipeline.batches import Batches, InOrder, fill, uniforms
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.loader import Loader
from vtx_scale.data_pipeline.opening import open_index
from vtx_scale.data_pipeline.order import Order
from vtx_scale.data_pipeline.tools.shards import write_shard


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return small_index(small_set(tmp_path_factory.mktemp("set")))


def test_a_batch_splits_into_its_parts(index):
    batch = Loader(batches_of(index, Pixels(), 10), stop=1).next()
    parts = batch.split(4)
    assert [len(p) for p in parts] == [4, 4, 2] and batch.split(None) == [batch] == batch.split(10)
    for name in ("valid", "ids", "epoch", "slot"):
        assert torch.equal(torch.cat([getattr(p, name) for p in parts]), getattr(batch, name))
    assert torch.equal(torch.cat([p["image"] for p in parts]), batch["image"])
    assert "image" in batch and "depth" not in batch and batch.slot.tolist() == list(range(10))
    assert isinstance(batch.to("cpu"), Batch)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_an_evaluation_sees_each_sample_once(index, world):
    ids = []
    for rank in range(world):
        for batch in Loader(Batches(index, InOrder(15), Pixels(), 4, rank, world), stop=4):
            ids += batch.ids[batch.valid].tolist()
            assert (batch.ids[~batch.valid] == -1).all()
    assert sorted(ids) == list(range(15))


def test_it_ends_where_it_is_told_and_else_never(index):
    loader = Loader(batches_of(index, Pixels(), 4), start=1, stop=3)
    assert [b.ids.tolist() for b in loader] == [loader.batches[s]["ids"].tolist() for s in (1, 2)]
    with pytest.raises(StopIteration):
        loader.next()
    endless = iter(Loader(batches_of(index, Pixels(), 4)))
    assert len([next(endless) for _ in range(40)]) == 40
    with pytest.raises(TypeError):
        len(Loader(batches_of(index, Pixels(), 4)))


def test_iterating_goes_on_where_it_left_off(index):
    loader = Loader(batches_of(index, Pixels(), 4))
    first = [next(iter(loader)).ids.tolist() for _ in range(3)]
    assert first == [loader.batches[s]["ids"].tolist() for s in range(3)] and loader.position == 12


def test_what_travels_to_a_worker_is_small(index):
    """Paths and parameters: no descriptor, no table, no cache."""
    batches = batches_of(index, Pixels(), 4)
    cold = len(pickle.dumps(batches))
    batches[0], batches[1]
    assert len(pickle.dumps(batches)) == cold < 8000
    assert pickle.loads(pickle.dumps(batches))[1]["ids"].tolist() == batches[1]["ids"].tolist()


def test_the_global_generator_is_left_alone(index):
    """Reading data draws nothing from the numbers of the training."""
    torch.manual_seed(0)
    was = torch.get_rng_state()
    Loader(batches_of(index, Pixels(), 4), stop=2).next()
    assert torch.equal(torch.get_rng_state(), was)


class Stops(Pixels):
    def __call__(self, members, draw):
        raise UserError("The disk is full: make room.")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_refusal_in_a_worker_is_one_sentence(index, workers):
    loader = Loader(batches_of(index, Stops(), 4), workers=workers)
    try:
        with pytest.raises(UserError) as refusal:
            loader.next()
        assert str(refusal.value) == "The disk is full: make room."
    finally:
        loader.close()


class Greedy(Pixels):
    def __call__(self, members, draw):
        raise MemoryError("nothing is left")


@pytest.mark.parametrize("workers", [0, 1])
def test_too_little_memory_is_not_taken_for_a_bad_sample(index, workers):
    loader = Loader(batches_of(index, Greedy(), 4), workers=workers)
    try:
        with pytest.raises(MemoryError, match="nothing is left"):
            loader.next()
    finally:
        loader.close()


def test_many_lanes_do_not_read_chunks_again(tmp_path, monkeypatch):
    """Over an epoch each chunk is read once by a rank,
    though its samples are spread over many batches.
    """
    write_shard(tmp_path / "a.tar", [(f"{i:03d}", {"txt": b"x"}) for i in range(300)])
    index = open_index(str(tmp_path), chunk=5)

    class Length:
        def blank(self):
            return {"n": np.zeros((), np.int64)}

        def __call__(self, members, draw):
            return {"n": np.int64(len(members["txt"]))}

    batches = Batches(index, Order(index.chunk_samples, 1, 8, 4), Length(), 10, 0, 1)
    reads = []
    reader = batches.chunk_reader().readers[0]
    once = reader._read_chunk
    monkeypatch.setattr(reader, "_read_chunk", lambda k: (reads.append(k), once(k))[1])
    for step in range(30):
        batches[step]
    assert sorted(reads) == list(range(60))


@pytest.mark.parametrize("shape", [(), (3,), (4, 5), (4, 5, 3), (2, 4, 5, 3)])
def test_a_row_is_filled_whatever_its_layout(shape):
    """Plain arrays, planes, and planes that were turned round: the same values."""
    value = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    layouts = [value]
    if len(shape) > 1:
        planes = np.moveaxis(np.ascontiguousarray(np.moveaxis(value, -1, 0)), 0, -1)
        turned = np.ascontiguousarray(planes[..., ::-1, :].swapaxes(-1, -2)).swapaxes(-1, -2)[
            ..., ::-1, :
        ]
        layouts += [planes, turned, np.asfortranarray(value)]
    for layout in layouts:
        rows = np.full((3, *shape), -1)
        fill(rows, 1, layout)
        assert (rows[1] == value).all() and (rows[[0, 2]] == -1).all()


@pytest.mark.parametrize("shape", [(5, 4, 3), (4, 5, 4), (4, 5)])
def test_a_reader_that_gives_another_shape_is_a_fault_of_the_program(shape):
    with pytest.raises(ValueError):
        fill(np.zeros((3, 4, 5, 3)), 1, np.zeros(shape[::-1]).T)


def test_an_integer_seed_of_64_bits():
    assert uniforms(2**64 - 1, 0, 2**40, 2**40)(2**32, 3).shape == (3,)
