"""P1, the same samples: ids and pixels through the real loader, whatever its processes,
faults and interruptions.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.data_pipeline.make import (
    DiesAt,
    Pixels,
    batches_of,
    corrupt,
    rows,
    small_index,
    small_set,
)
from tests.survivors import mentioning
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.loader import Loader
from vtx_scale.data_pipeline.tools.shards import write_shard

BATCH, STEPS = 8, 5  # 40 positions: more than two epochs of 15


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return small_index(small_set(tmp_path_factory.mktemp("sound")))


def loaded(index, world=1, workers=0, reader=None, steps=STEPS, batch=BATCH):
    """{(step, slot): (sample, epoch, pixels)} of all ranks, and the ledger entries by step."""
    out, bad = {}, []
    for rank in range(world):
        loader = Loader(
            batches_of(index, reader or Pixels(), batch, rank, world), stop=steps, workers=workers
        )
        try:
            for step, local in enumerate(loader):
                assert len(local) == -(-batch // world)
                assert (local["image"][~local.valid] == 0).all()
                bad += [(step, entry) for entry in local.bad]
                for i in range(len(local)):
                    if local.valid[i]:
                        at = (step, int(local.slot[i]))
                        assert at not in out, "a slot stands on two ranks"
                        out[at] = (
                            int(local.ids[i]),
                            int(local.epoch[i]),
                            local["image"][i].numpy().tobytes(),
                        )
                    elif local.ids[i] < 0:
                        assert local.slot[i] == -1, "padding is no slot"
        finally:
            loader.close()
    return out, bad


@pytest.fixture(scope="module")
def alone(sound):
    """What one process on one rank sees."""
    return loaded(sound)[0]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more processes than cores
@pytest.mark.parametrize(
    "workers", [0, 1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3))]
)
def test_ids_and_pixels_are_those_of_one_process(sound, alone, workers):
    assert len(alone) == BATCH * STEPS
    epoch_0 = [g for g, epoch, _ in alone.values() if epoch == 0]
    assert sorted(epoch_0) == list(range(15))
    for world in (1, 2, 3, 4, 5) if workers == 0 else (1, 2, 5):
        assert loaded(sound, world, workers)[0] == alone, f"{workers} workers, world {world}"


def test_pixels_belong_to_seed_epoch_and_view(sound, alone):
    again = {}
    for g, epoch, pixels in alone.values():
        again.setdefault(g, {})[epoch] = pixels
    both = [x for x in again.values() if len(x) > 1]
    assert len(both) == 15 and all(x[0] != x[1] for x in both), (
        "an epoch repeats the crops of another"
    )
    views = [np.frombuffer(x[0], np.uint8).reshape(2, -1) for x in again.values()]
    assert all((v[0] != v[1]).any() for v in views)
    other = Loader(batches_of(sound, Pixels(), BATCH, seed=4), stop=1).next()
    assert {
        int(g): p.numpy().tobytes() for g, p in zip(other.ids, other["image"], strict=True)
    }.items().isdisjoint({g: p for g, e, p in alone.values() if e == 0}.items())


def test_the_state_names_the_next_batch_at_every_step(sound, alone):
    """Whatever was read ahead: save, load into another loader, go on."""
    flat = [alone[s, i][0] for s in range(STEPS) for i in range(BATCH)]
    loader = Loader(batches_of(sound, Pixels(), BATCH), workers=2)
    try:
        for done in range(1, STEPS):
            loader.next()
            state = json.loads(json.dumps(loader.state_dict()))
            assert state == {
                "version": 1,
                "position": done * BATCH,
                "fingerprint": loader.batches.fingerprint,
            }
            other = Loader(batches_of(sound, Pixels(), BATCH))
            other.load_state_dict(state)
            assert other.next().ids.tolist() == flat[done * BATCH : (done + 1) * BATCH]
        # in the middle of reading ahead: back to the second
        loader.load_state_dict({**state, "position": BATCH})
        assert loader.next().ids.tolist() == flat[BATCH : 2 * BATCH]
    finally:
        loader.close()
    third = Loader(batches_of(sound, Pixels(), BATCH), workers=1)
    third.load_state_dict(state)
    try:
        assert next(iter(third)).ids.tolist() == flat[state["position"] : state["position"] + BATCH]
        assert third.state_dict()["position"] == state["position"] + BATCH
    finally:
        third.close()


def test_another_batch_size_goes_on_at_the_same_sample(sound):
    loader = Loader(batches_of(sound, Pixels(), 8))
    loader.next()
    order = loader.batches.order
    for batch, world in ((3, 1), (5, 2)):
        position, ids = loader.position, []
        other = [Loader(batches_of(sound, Pixels(), batch, rank, world)) for rank in range(world)]
        for x in other:
            x.load_state_dict(loader.state_dict())
            drawn = x.next()
            ids += drawn.ids[drawn.valid].tolist()
        assert sorted(ids) == sorted(order.ids(np.arange(position, position + batch)).tolist())
        assert {x.position for x in other} == {position + batch}
        loader = other[0]


def test_the_state_of_other_data_is_refused(sound, tmp_path):
    state = Loader(batches_of(sound, Pixels(), BATCH)).state_dict()
    small_set(tmp_path, (5, 1, 8))
    for loader in (
        Loader(batches_of(small_index(tmp_path), Pixels(), BATCH)),
        Loader(batches_of(sound, Pixels(), BATCH, seed=4)),
    ):
        with pytest.raises(UserError) as refusal:
            loader.load_state_dict(state)
        assert state["fingerprint"] in str(refusal.value) and loader.batches.fingerprint in str(
            refusal.value
        )
        assert loader.position == 0
    for wrong in (
        {**state, "version": 2},
        {**state, "position": -1},
        {**state, "position": "8"},
        {},
    ):
        with pytest.raises(UserError):
            Loader(batches_of(sound, Pixels(), BATCH)).load_state_dict(wrong)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """The same shards with four bad samples; the bytes of the others are those of `sound`."""
    folder, reasons = tmp_path_factory.mktemp("faulty"), {}
    for s, count in enumerate((5, 1, 9)):
        members = dict(rows(s, count))
        if s == 0:
            members["0-01"]["jpg"] = corrupt(members["0-01"]["jpg"])
            del members["0-04"]["txt"]
            reasons |= {"s0.tar/0-01": "jpeg_corrupt", "s0.tar/0-04": "member_missing"}
        if s == 2:
            members["2-00"]["jpg"], members["2-08"]["txt"] = b"", b" "
            reasons |= {"s2.tar/2-00": "empty", "s2.tar/2-08": "text"}
        write_shard(folder / f"s{s}.tar", members.items())
    return folder, reasons


def assert_masked(index, alone, reasons, world, workers=0):
    """All but the bad are as without the fault; delivered and ledger add up;
    each bad one once an epoch.
    """
    out, ledger = loaded(index, world, workers)
    assert out.items() <= alone.items(), "a fault changed another slot"
    entries = [(step, e) for step, e in ledger if e["kind"] == "sample"]
    assert len(out) + len(entries) == len(alone)
    for step, e in entries:
        assert reasons[f"{e['shard']}/{e['key']}"] == e["reason"]
        g, epoch, _ = alone[step, e["slot"]]
        assert (e["sample"], e["epoch"]) == (g, epoch)
        order = batches_of(index, Pixels(), BATCH).order
        assert order.ids(np.array([e["position"]]))[0] == g and e["position"] // BATCH == step
    whole = Counter((e["shard"], e["key"], e["epoch"]) for _, e in entries if e["epoch"] < 2)
    assert whole == Counter({(*i.split("/"), epoch): 1 for i in reasons for epoch in (0, 1)})
    return entries


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_a_bad_sample_masks_its_slot_and_no_other(faulty, alone, world):
    folder, reasons = faulty
    entries = assert_masked(small_index(folder), alone, reasons, world)
    body = (folder / "s0.tar").read_bytes()
    at = next(e["offset"] for _, e in entries if e["key"] == "0-01")
    assert body[at : at + 8] == b"0-01.jpg", "the offset leads to the sample's first header"


@pytest.mark.parametrize("world", [1, 3])
def test_a_damaged_chunk_masks_its_samples_and_no_other(tmp_path, alone, world):
    """A flipped bit in one member, size and time of the shard as before:
    the chunk's checksum tells.
    """
    folder = small_set(tmp_path)
    index = small_index(folder)
    shard = folder / "s2.tar"
    body, stat = bytearray(shard.read_bytes()), shard.stat()
    body[body.index(b"2-03.jpg") + 512 + 300] ^= 1
    shard.write_bytes(body)
    os.utime(shard, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert small_index(folder).digest == index.digest, "the index was made again"
    assert_masked(index, alone, {"s2.tar/2-02": "chunk_crc", "s2.tar/2-03": "chunk_crc"}, world)


@pytest.mark.slow
def test_a_worker_that_dies_costs_nothing_and_the_sample_that_kills_is_masked(
    sound, alone, tmp_path
):
    """Reading 2-04 kills its process: its slot is masked, each death is in the ledger,
    all else is as it was.
    """
    out, ledger = loaded(sound, 1, 2, DiesAt("2-04", tmp_path / "deaths"), steps=2)
    expected = {at: x for at, x in alone.items() if at[0] < 2}
    assert out.items() <= expected.items()
    entries = [e for _, e in ledger if e["kind"] == "sample"]
    assert len(out) + len(entries) == len(expected)
    assert {(e["key"], e["reason"]) for e in entries} == {("2-04", "worker_died")}
    assert Counter(e["kind"] for _, e in ledger)["retry"] >= 1
    assert (tmp_path / "deaths").stat().st_size <= 2 * (1 + 2), (
        "twice apart, and in no more workers than there are"
    )


def living(pids):
    found = []
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat") as f:
                found += [pid] if f.read().rpartition(")")[2].split()[0] != "Z" else []
        except OSError:
            continue
    return found


def gone(pids, seconds=5.0):
    until = time.monotonic() + seconds
    while living(pids) and time.monotonic() < until:
        time.sleep(0.05)
    return not living(pids)


def test_no_worker_survives_a_close_or_an_exception(sound):
    loader = Loader(batches_of(sound, Pixels(), BATCH), workers=2)
    with pytest.raises(ZeroDivisionError):
        try:
            for _ in loader:
                pids = [w.pid for w in loader._it._workers]
                assert len(living(pids)) == 2
                raise ZeroDivisionError
        finally:
            loader.close()
    assert gone(pids)


PARENT = """
import sys, time
from vtx_scale.data_pipeline.loader import Loader
from tests.data_pipeline.make import Slow, batches_of, small_index

if __name__ == "__main__":
    loader = Loader(batches_of(small_index(sys.argv[1]), Slow(), 8), workers=2)
    loader.next()
    print(*(w.pid for w in loader._it._workers), flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_process_survives_its_trainer(sound, tmp_path, how):
    """Killed or interrupted while workers read ahead;
    the trainer stays a zombie meanwhile, as under a busy parent.
    """
    script = tmp_path / "trainer.py"
    script.write_text(PARENT)
    env = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "VTX_TEST_MARK": str(tmp_path),
    }
    trainer = subprocess.Popen(
        [sys.executable, script, str(sound.root)],
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        pids = [int(x) for x in trainer.stdout.readline().split()]
        # trainer, fork server, workers
        assert len(living(pids)) == 2 and len(mentioning(str(tmp_path))) >= 4
        trainer.send_signal(how)
        assert gone(pids)
        until = time.monotonic() + 5
        while (left := mentioning(str(tmp_path))) and time.monotonic() < until:
            time.sleep(0.1)
        assert not left, left
    finally:
        trainer.kill()
        trainer.wait()
