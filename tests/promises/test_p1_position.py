"""P1 where the batch changes on the way: the order goes on at the position, whatever the step."""

import json

import numpy as np
import pytest

from tests.data_pipeline.make import Pixels, batches_of, small_index, small_set
from tests.ranks import on_ranks
from tests.runs import ids, lines, one_rank, smoke, train_on_ranks, vtx
from vtx_scale.checkpoints.format import manifest_name, read_manifest, seal
from vtx_scale.checkpoints.format import steps as steps_of
from vtx_scale.launch import override, recipes
from vtx_scale.launch.paths import checkpoints_of
from vtx_scale.launch.prepare import prepare_folder, refuse

EPOCH = 256  # toy samples


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return small_index(small_set(tmp_path_factory.mktemp("sound")))


@pytest.mark.parametrize("seed", range(20))
def test_any_chain_of_batches_reads_every_position_once(index, seed):
    """Chains of (batch, steps) over any number of ranks, from the first epoch into the third."""
    rng = np.random.default_rng(seed)
    step = position = 0
    while position < 3 * index.n:
        batch, steps, world = (int(n) for n in rng.integers(1, (12, 4, 4)))
        ranks = [batches_of(index, Pixels(), batch, rank, world) for rank in range(world)]
        for rank in ranks:
            rank.go_on(step, position)
        for _ in range(steps):
            shares = [r.order.share(step, batch, r.rank, world, r.offset) for r in ranks]
            here = [p for share in shares for p in share.tolist() if p >= 0]
            assert sorted(here) == list(range(position, position + batch))
            rows = [r[step] for r in ranks]
            seen = [i for row in rows for i in row["ids"].tolist() if i >= 0]
            assert seen == ranks[0].order.ids(np.array(here)).tolist()
            step, position = step + 1, position + batch


def go_on(folder, world, *keys, code=75):
    """The fork that `vtx train --fork` makes, on ranks of this test's server."""
    run = smoke(*keys)
    prepare_folder(run, folder, refuse(run, folder, world), fork=True)
    assert on_ranks(world, one_rank, override.to_dict(run), folder, recipes.STRANGERS) == (
        [code] * world
    )


def read_in(folder, first, end):
    """Sample numbers of these steps, the last one included."""
    found = ids(folder)
    return [sample for step in range(first, end + 1) for sample in found[step].values()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("one", "two", "three"),
    [
        (10, 33, 48),
        pytest.param(16, 32, 48, marks=pytest.mark.full),
        pytest.param(48, 7, 24, marks=pytest.mark.full),
    ],
)
def test_a_fork_with_another_batch_goes_on_in_the_epoch(tmp_path, one, two, three):
    """Two forks, the second after a resume of the first: the epoch is read without loss
    or repeat.
    """
    folder, steps = tmp_path / "run", 40
    first = (f"global_batch={one}", f"steps={steps}", "system.leave_after=3")
    train_on_ranks(folder, 1, "single", *first, code=75)
    second = (f"global_batch={two}", f"steps={steps}", "system.leave_after=1")
    go_on(folder, 1, *second)  # 4 steps
    go_on(folder, 2, *second, "system.strategy=ddp")  # 5 steps: the same run, resumed
    position = 3 * one + 2 * two
    whole = -(-(EPOCH - position) // three)  # steps to the end of the epoch
    go_on(folder, 1, f"global_batch={three}", f"steps={5 + whole}", code=0)
    storage = checkpoints_of(folder)
    newest = read_manifest(storage, steps_of(storage)[-1])
    assert newest["data"]["position"] == position + whole * three
    seen = read_in(folder, 1, 5 + whole)
    assert len(seen) == position + whole * three and set(seen) == set(range(EPOCH))
    inside = read_in(folder, 1, 4 + whole)  # the last batch may reach into the next epoch
    assert len(set(inside)) == len(inside)


def without_position(folder) -> None:
    """Its checkpoint as one that says its step alone."""
    storage = checkpoints_of(folder)
    for step in steps_of(storage):
        manifest = read_manifest(storage, step)
        del manifest["data"]["position"]
        storage.put(manifest_name(step), seal(manifest))


@pytest.mark.slow
def test_a_checkpoint_that_says_its_step_alone_had_the_batch_it_was_written_with(tmp_path):
    folder = tmp_path / "run"
    keys = ("global_batch=16", "steps=20", "system.leave_after=4")
    train_on_ranks(folder, 1, "single", *keys, code=75)
    without_position(folder)
    about = json.loads((folder / "run.json").read_text())
    del about["batches"]  # of before
    (folder / "run.json").write_text(json.dumps(about))
    go_on(folder, 1, "global_batch=32", "steps=10", code=0)
    assert sorted(read_in(folder, 1, 10)) == list(range(EPOCH))


@pytest.mark.slow
def test_fewer_steps_than_there_are_is_refused_before_anything_is_written(tmp_path):
    folder = tmp_path / "run"
    train_on_ranks(folder, 1, "single", "steps=8", "global_batch=16")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    command = ("train", "clip_vit_b32", "--smoke", "--run", folder, "system.workers=0")
    for steps, more in ((2, ("--fork",)), (7, ("--fork", "global_batch=32"))):
        done = vtx(*command, f"steps={steps}", *more)
        assert done.returncode == 2, done.stderr
        assert f"steps={steps}" in done.stderr and "step 8" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    assert lines(folder / "metrics.jsonl")[-1]["step"] == 8
