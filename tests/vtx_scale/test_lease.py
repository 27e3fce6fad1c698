"""One writer: epochs over any storage, and what who lost them may no longer do."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch

from tests.ranks import on_ranks
from tests.runs import COLOUR, environment, smoke
from tests.storages import Memory
from vtx_scale.checkpoints import lease
from vtx_scale.checkpoints.lease import Lost, acquire, check, newest
from vtx_scale.checkpoints.read import Tensors, verify
from vtx_scale.checkpoints.write import Writer
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.storage import Folder
from vtx_scale.distributed.sharding import Slice
from vtx_scale.launch import override, recipes, worker
from vtx_scale.launch.paths import lease_of
from vtx_scale.launch.prepare import prepare_folder, refuse
from vtx_scale.launch.run_folder import acquire_lease


@pytest.fixture(params=["folder", "memory"])
def storage(request, tmp_path):
    return Memory() if request.param == "memory" else Folder(tmp_path / "lease")


def take(storage, who="one", ttl=0.6, **more):
    return acquire(storage, {"who": who}, ttl=ttl, poll=0.02, **more)


def stop(held):
    """As a holder whose process was stopped: it neither renews nor gives back."""
    held._ended.set()
    held._thread.join()


def test_one_holds_it_and_the_next_is_refused_while_it_is_renewed(storage):
    with take(storage) as first:
        assert first.epoch == newest(storage) == 1
        with pytest.raises(Lost, match="one"):
            take(storage, "two")
        first.renew()
        check(storage, 1)
    with take(storage, "two") as second:  # given back: at once
        assert second.epoch == 2


def test_who_does_not_renew_is_taken_over_and_finds_out(storage):
    said, first = [], take(storage)
    stop(first)
    began = time.monotonic()
    with take(storage, "two", wait=said.append) as second:
        assert time.monotonic() - began >= 0.6 and said == ["one"] and second.epoch == 2
        with pytest.raises(Lost, match=r"two has taken the run over \(epoch 2, this job's is 1\)"):
            first.renew()
        with pytest.raises(Lost):
            check(storage, 1)
        check(storage, 2)
        first._ended.clear()
        first.close()  # gives nothing back that is another's
        assert json.loads(storage.get_range("00000002", 0, 999))["state"] == "held"
    with take(storage) as third:
        assert third.epoch == 3


def test_one_that_is_known_to_be_gone_is_taken_over_at_once(storage):
    stop(take(storage, ttl=60))
    with take(storage, "two", ttl=60, gone=lambda body: body["who"] == "one") as second:
        assert second.epoch == 2


def test_a_silence_that_was_seen_is_not_waited_for_once_more(storage):
    first = take(storage, ttl=60)
    before = (1, lease.holder(storage, 1))
    first.renew()
    seen = (1, lease.holder(storage, 1))
    stop(first)
    began = time.monotonic()
    with take(storage, "two", ttl=60, silent=seen) as second:
        assert second.epoch == 2 and time.monotonic() - began < 30
        stop(second)
        for another in (before, seen, (1, lease.holder(storage, 2))):  # it has changed since
            began = time.monotonic()
            with take(storage, "three", ttl=0.3, silent=another) as third:
                assert time.monotonic() - began >= 0.3
                stop(third)


def test_a_holder_renews_nothing_that_is_another_ones(storage):
    held = take(storage, ttl=0.15)
    storage.put("00000002", json.dumps({"who": "two", "state": "held"}).encode())
    held._thread.join(10)
    assert not held._thread.is_alive()
    held.close()
    assert lease.holder(storage, 1)["state"] == "held"
    assert lease.holder(storage, 2) == {"who": "two", "state": "held"}


def test_a_holder_may_go_on_under_a_newer_epoch(storage):
    """So that what it can no longer reach writes nothing that counts; nobody else gets in."""
    with take(storage) as held:
        assert held.advance() == held.epoch == newest(storage) == 2
        check(storage, 2)
        with pytest.raises(Lost, match="one has taken the run over"):
            check(storage, 1)
        held.renew()
        with pytest.raises(Lost, match="one"):
            take(storage, "two")
        for _ in range(lease.KEPT + 3):
            held.advance()
        assert len(list(storage.list(""))) <= lease.KEPT + 2
    with take(storage, "two") as second:  # it was given back under its last epoch
        assert second.epoch == lease.KEPT + 6
        storage.put(f"{second.epoch + 1:08d}", b'{"who": "three", "state": "held"}')
        with pytest.raises(Lost):
            second.advance()


def test_a_newer_epoch_whose_answer_was_lost_is_the_holders(storage, monkeypatch):
    with take(storage, ttl=60) as held:
        put = storage.put_if_absent
        monkeypatch.setattr(storage, "put_if_absent", lambda name, body: put(name, body) and False)
        assert held.advance() == 2


def test_a_newer_epoch_that_is_found_stored_later_is_renewed_and_given_back(storage, monkeypatch):
    """The put is stored and its answer lost; before the next try the holder renews."""
    put, answers = storage.put_if_absent, [False]

    def put_if_absent(name, body):
        stored = put(name, body)
        if not answers[0]:
            raise OSError("no answer")
        return stored

    held = take(storage, ttl=0.3)
    with held:
        monkeypatch.setattr(storage, "put_if_absent", put_if_absent)
        with pytest.raises(OSError):
            held.advance()
        answers[0] = True
        until = time.monotonic() + 20
        while lease.holder(storage, 2)["beat"] < 3 and time.monotonic() < until:
            time.sleep(0.02)
        assert lease.holder(storage, 2)["beat"] >= 3, "nobody renews it"
        assert held.advance() == 3 and held.taken == "" and held._thread.is_alive()
    assert lease.holder(storage, 3)["state"] == "released"


def test_a_put_that_lands_late_is_the_holders(storage, monkeypatch):
    """No answer came, the holder renewed, then the put was stored after all."""
    put, late = storage.put_if_absent, []

    def lost(name, body):
        late.append((name, body))
        raise OSError("no answer")

    with take(storage, ttl=60) as held:
        monkeypatch.setattr(storage, "put_if_absent", lost)
        with pytest.raises(OSError):
            held.advance()
        held.renew()
        monkeypatch.setattr(storage, "put_if_absent", put)
        put(*late[0])
        assert held.advance() == 2


def test_a_holder_that_cannot_read_the_newer_epoch_asks_again(storage, monkeypatch):
    def silent(name):
        raise OSError("no answer")

    with take(storage, ttl=60) as held:
        with monkeypatch.context() as away:
            away.setattr(storage, "open", silent)
            with pytest.raises(OSError):
                held.advance()
        assert held.advance() == 2


def test_it_is_renewed_again_after_a_rest(storage):
    """For a fork, during which its process must have no thread."""
    threads = threading.active_count()
    with take(storage) as held:
        with held.without_thread():
            assert threading.active_count() == threads
        beat = held.body["beat"]
        until = time.monotonic() + 20
        while held.body["beat"] == beat and time.monotonic() < until:
            time.sleep(0.02)
        assert held.body["beat"] > beat, "nobody renews it"
    assert threading.active_count() == threads


def test_no_wall_clock_counts(storage, monkeypatch):
    """Machines' clocks differ by hours: nothing asks for the time of day."""

    def never():
        raise AssertionError("the time of day")

    monkeypatch.setattr(time, "time", never)
    stop(take(storage))
    take(storage, "two").close()


def test_of_many_at_once_each_has_an_epoch_of_its_own(storage):
    lock, together, most = threading.Lock(), [], []

    def work(number):
        while True:
            try:
                held = take(storage, str(number))
            except Lost:
                continue
            with lock:
                together.append(number)
                most.append(len(together))
            time.sleep(0.01)
            with lock:
                together.remove(number)
            held.close()
            return held.epoch

    with ThreadPoolExecutor(8) as pool:
        epochs = list(pool.map(work, range(8)))
    assert len(set(epochs)) == 8 and set(most) == {1}, (epochs, most)


def test_old_epochs_are_cleared_and_none_comes_twice(storage):
    epochs = []
    for _ in range(12):
        with take(storage) as held:
            epochs.append(held.epoch)
    assert epochs == list(range(1, 13)) and len(list(storage.list(""))) <= lease.KEPT + 1


def test_a_folder_that_was_cleared_under_its_holder_is_still_its_own(storage):
    with take(storage) as held:
        storage.delete("00000001")
        check(storage, 1)
        held.renew()
        assert newest(storage) == 1


def whole(value):
    return [Slice("param/a", (4,), ((0, 4),), torch.full((4,), float(value)))]


def saved(storage, step):
    return Tensors(storage, verify(storage, step)).tensor("param/a").tolist()


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_who_lost_it_commits_nothing(tmp_path, kind):
    """The older one has staged and written its part, at a step that the newer one has saved, and
    at one that it has not; nothing is overwritten.
    """
    epochs, storage = (
        (Memory(), Memory())
        if kind == "memory"
        else (Folder(tmp_path / "lease"), Folder(tmp_path / "checkpoints"))
    )
    old = take(epochs, ttl=60)
    stop(old)
    older = Writer(storage, 0, 1, "a", 3, epoch=1, held=partial(check, epochs, 1))
    older.save(2, whole(1), {})
    older.wait()
    assert older.error is None and saved(storage, 2) == [1.0] * 4
    with take(epochs, "two", gone=lambda body: True) as new:
        newer = Writer(storage, 0, 1, "b", 3, epoch=2, held=partial(check, epochs, 2))
        newer.save(4, whole(2), {})
        newer.wait()
        for step in (4, 6):
            older.save(step, whole(1), {})
            older.wait()
            assert older.lost and "two has taken the run over" in (older.error or "")
        assert saved(storage, 4) == [2.0] * 4
        assert verify(storage, 4)["epoch"] == 2 == new.epoch
        assert storage.head("step-00000006/manifest.json") is None
        # also where it looked just before it lost it
        older.held = lambda: None
        older.save(4, whole(1), {})
        older.wait()
        assert older.lost and "was saved by another job" in (older.error or "")
        assert saved(storage, 4) == [2.0] * 4
        newer.save(2, whole(3), {})  # a step of before is the newer one's to save again
        newer.wait()
        assert newer.error is None and saved(storage, 2) == [3.0] * 4


HOLD = """
import sys, time
from pathlib import Path
from vtx_scale.launch.run_folder import acquire_lease
held = acquire_lease(Path(sys.argv[1]))
print("ready", flush=True)
time.sleep(60)
"""


def test_a_holder_of_this_host_that_was_killed_is_taken_over_at_once(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    with pytest.raises(UserError, match=f"is being written by process {process.pid} on"):
        acquire_lease(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    said = []
    began = time.monotonic()
    with acquire_lease(tmp_path, said.append) as held:
        assert held.epoch == 2 and not said and time.monotonic() - began < 5


def test_a_holder_of_another_host_has_its_time(tmp_path, monkeypatch):
    """Its lock is not seen from here: renewed it is refused, else taken over when it ran out."""
    monkeypatch.setattr(lease, "TTL", 0.6)
    monkeypatch.setattr(acquire, "__defaults__", (*acquire.__defaults__[:2], 0.6, 0.02))
    there = acquire(lease_of(tmp_path), {"who": "process 7 on another", "machine": "another"})
    with pytest.raises(UserError, match="is being written by process 7 on another"):
        acquire_lease(tmp_path, lambda line: None)
    stop(there)
    said = []
    with acquire_lease(tmp_path, said.append) as held:
        assert held.epoch == 2
    assert len(said) == 1 and "was left by process 7 on another without a word" in said[0]


def ends(recipe, folder, paths):
    """The worker under epoch 3; the sentence it ends with too."""
    recipes.let_import(paths)
    lines = []
    code = worker.work(override.from_dict(recipe), folder, message=lines.append, epoch=3)
    return code, lines, os.environ["RANK"]


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_a_run_whose_lease_was_taken_ends(tmp_path, world):
    """On all ranks, long before its next save; what was committed stays."""
    folder = tmp_path / "run"
    run = smoke(
        "checkpoint.every=0", "system.strategy=ddp" if world > 1 else "steps=12", recipe=COLOUR
    )
    prepare_folder(run, folder, refuse(run, folder, world))
    lease_of(folder).put("00000004", b'{"who": "process 7 on another", "state": "held"}')
    found = on_ranks(world, ends, override.to_dict(run), folder, recipes.STRANGERS)
    assert [code for code, *_ in found] == [2] * world
    assert "process 7 on another has taken the run over" in found[0][1][-1]
    assert not list((folder / "checkpoints").rglob("manifest.json"))
    assert not (folder / "metrics.jsonl").exists(), "it went on"
