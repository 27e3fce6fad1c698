"""What the driver decides, on a Ray of this process: which actors live, and when it gives up."""

import errno
import math
import os
import time
from dataclasses import replace

import pytest

from tests.cluster.fake_ray import cluster
from tests.require import need
from vtx_scale.cluster.job import GaveUp, State
from vtx_scale.cluster.policy import DAY
from vtx_scale.cluster.ray_nodes import Held
from vtx_scale.launch import driver as driver_module
from vtx_scale.launch import recipes
from vtx_scale.launch.driver import Driver, world_of
from vtx_scale.launch.faults import Faults
from vtx_scale.launch.hangs import Beat
from vtx_scale.launch.judged import Ended, judge
from vtx_scale.launch.rounds import RETRIES, Tries
from vtx_scale.launch.submit import News, crowded
from vtx_scale.trainer.output import append_text

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(autouse=True)
def _ray():
    need("ray")


class Lease:
    taken, epoch = "", 1

    def advance(self):
        self.epoch += 1


def driver_of(cluster, folder, world, **more):
    system = replace(recipes.find("clip_vit_b32", smoke=True).system, world=world)
    driver = Driver(cluster, system, folder, Lease(), **more)
    driver.world, driver.faults = world_of(system, cluster), Faults(folder)
    return driver


def until(holds, seconds=30):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("memory", [False, True])
def test_what_a_machine_has_in_memory_outlives_other_ranks_on_it(monkeypatch, tmp_path, memory):
    """2 on a, 2 on b -> a gone, 4 on b -> a is back: 2 on b. Its actor is the same throughout,
    where it has anything in memory.
    """
    with cluster(monkeypatch, a=2, b=4) as (machines, ray):
        driver = driver_of(machines, tmp_path, "4..4", memory=memory)
        b, a = machines.machines()
        held = driver.gather()
        assert held is not None and [(h.machine.name, n) for h, n in held] == [("b", 4)]
        first = {h.machine.name: h.actor for h, _ in held}
        until(lambda: driver.ready({b: 2, a: 2}))
        assert machines.held["b"].actor is first["b"], "fewer ranks"
        machines.drop(machines.held["b"])
        until(lambda: driver.ready({b: 2}))
        small = machines.held["b"].actor
        until(lambda: driver.ready({b: 4}))
        assert (machines.held["b"].actor is small) == memory, "more ranks"


def test_a_machine_outside_the_plan_stays_until_the_next_round_trains(monkeypatch, tmp_path):
    with cluster(monkeypatch, a=2, b=2) as (machines, ray):
        driver = driver_of(machines, tmp_path, "2..4", memory=True)
        held = driver.gather()
        assert held is not None and len(held) == 2
        a, b = (one for one, _ in held)
        until(lambda: driver.ready({a.machine: 2}))
        assert machines.held == {"a": a, "b": b}, "it went before another round was there"
        driver.ranks, driver.idle = 2, [b]
        for phases in ([], ["step"], ["step", "start.load"]):
            a.state = State({0: None, 1: None}, beats=[Beat(0, phase, 5, 0) for phase in phases])
            driver.release([a])
            assert machines.held == {"a": a, "b": b}
        a.state = State({0: None, 1: None}, beats=[Beat(rank, "step", 5, 0) for rank in range(2)])
        driver.release([a])
        assert machines.held == {"a": a} and b.actor.killed


def test_an_actor_that_goes_removes_what_it_has_on_its_machine(monkeypatch, tmp_path):
    with cluster(monkeypatch, a=1) as (machines, ray):
        held = driver_of(machines, tmp_path, "1..1").gather()
        assert held is not None
        one = held[0][0]
        until(lambda: one.answered)
        machines.drop(one)
        assert one.actor.called[-1] == "close" and one.actor.killed


def test_a_machine_that_cannot_prepare_is_left_alone_for_a_while(monkeypatch, tmp_path):
    with cluster(monkeypatch, a=1) as (machines, ray):
        ray.answers["prepare"] = RuntimeError("no such library")
        driver = driver_of(machines, tmp_path, "1..1", patience=0.01)
        with pytest.raises(GaveUp, match="no room for the workers"):
            driver.gather()
        assert len(ray.actors) == 1, "started again and again"
        assert "has lost the process" in driver.faults.reasons("a")


def test_preparation_is_no_wait_for_machines(monkeypatch, tmp_path):
    with cluster(monkeypatch, a=1) as (machines, ray):
        until_then = time.monotonic() + 1
        ray.ready = lambda answer: answer.name != "prepare" or time.monotonic() > until_then
        assert driver_of(machines, tmp_path, "1..1", patience=0).gather()
        with pytest.raises(GaveUp, match="--patience"):
            driver_of(machines, tmp_path, "2..2", patience=0).gather()


def test_what_the_driver_waits_for_is_in_the_log_and_on_the_terminal_once(
    monkeypatch, tmp_path, capfd
):
    with cluster(monkeypatch, a=2) as (machines, ray):
        news = News(tmp_path / "log.txt", False)
        driver = driver_of(
            machines, tmp_path, "4..8", patience=0.01, news=news.show, written=news.written
        )
        with pytest.raises(GaveUp):
            driver.gather()
        machines.held["a"] = Held(machines.machines()[0], 2, None, lost="is broken")
        driver.forget_lost()
        del machines._aside["a"]
        driver.world = replace(driver.world, low=1, unit=3)
        driver.say_world([(Held(machines.machines()[0], 2, None), 1)], 1)
        append_text(tmp_path, "step 1/2  of a rank")
        driver.tell(Ended(-9, "rank 0 on a: ended with signal 9", "", [], ""), 490)
        driver.news()
    lines = [line[20:] for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert lines == [
        "waiting for machines: 2 of 4 slots",
        "a is broken: left out for now",
        "starting the workers",
        "idle slots, of which no world can be made: 1 on a",
        "step 1/2  of a rank",
        "rank 0 on a: ended with signal 9: starting again from step 490",
    ]
    assert sorted(capfd.readouterr().err.splitlines()) == sorted(lines)


def test_one_crash_is_one_fault_and_two_within_a_day_leave_a_machine_out(monkeypatch, tmp_path):
    with cluster(monkeypatch, a=2, b=2) as (machines, ray):
        driver = driver_of(machines, tmp_path, "1..4")
        a, b = machines.machines()

        def crash():
            driver.tell(Ended(1, "", "", [Held(a, 2, None, lost="has lost it")], ""), 0)
            again = machines.hold(a, 2, 2)
            again.lost = "has lost the process that keeps its ranks"
            driver.forget_lost()  # its next actor goes with the same crash
            machines._aside.clear()

        crash()
        (first,) = Faults(tmp_path).of("a")
        assert first["reason"] == "has lost it" and set(driver.plan()) == {a, b}
        first["time"] -= DAY / 2
        driver.faults.known["a"] = [first]
        crash()
        assert len(Faults(tmp_path).of("a")) == 2 and set(driver.plan()) == {b}
        driver.world = replace(driver.world, low=4)
        assert set(driver.plan()) == {a, b}, "the run cannot do without it"


@pytest.mark.parametrize("body", [b"{", b"[]"])
def test_faults_that_cannot_be_read_are_not_written_over(monkeypatch, tmp_path, body):
    Faults(tmp_path).add("a", "the first")
    file = tmp_path / "nodes" / "a.json"
    old, faults = file.read_bytes(), Faults(tmp_path)
    reads, down = faults.storage.open, [body == b"[]"]

    def fails(*about):
        if down[0]:
            raise OSError("away")
        return reads(*about)

    monkeypatch.setattr(faults.storage, "open", fails)
    monkeypatch.setattr("vtx_scale.launch.faults.TOGETHER", 0.0)
    if not down[0]:
        file.write_bytes(body)
    faults.add("a", "the second")
    assert file.read_bytes() == (old if down[0] else body) and len(faults.of("a")) == 1
    if down[0]:
        down[0] = False
        faults.add("a", "the third")
        reasons = [fault["reason"] for fault in Faults(tmp_path).of("a")]
        assert reasons == ["the first", "the second", "the third"]


def test_asked_to_leave_while_the_bucket_is_away_begins_nothing(monkeypatch, tmp_path):
    with cluster(monkeypatch, a=1) as (machines, ray):
        driver = driver_of(machines, tmp_path, "1..1")
        monkeypatch.setattr(driver_module, "patiently", lambda *about: None)
        assert driver.after(Ended(-9, "rank 0 on a", "", [], ""), Tries(0)) == 75
    assert not (tmp_path / "ledger.jsonl").exists() and not (tmp_path / "log.txt").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES])
def test_a_full_disk_at_the_last_save_trains_nothing_again(monkeypatch, tmp_path, number):
    text = (
        f"The last checkpoint could not be saved (at/x: {os.strerror(number)}): make room or "
        "mend the path, and run the same command again."
    )
    with cluster(monkeypatch, a=1) as (machines, ray):
        driver = driver_of(machines, tmp_path, "1..1")
        held = Held(machines.machines()[0], 1, None, State({0: 1}, {0: f"vtx: {text}"}))
        watch = driver.watch()
        ended = judge([held], {0: 1}, "", watch)
        assert ended.words == text and not ended.why.endswith(".")
        if number == errno.EACCES:
            assert driver.after(ended, Tries(0)) is None
        else:
            with pytest.raises(GaveUp, match="could not be saved"):
                driver.after(ended, Tries(0))
            assert not (tmp_path / "ledger.jsonl").exists()


def test_more_ranks_than_cpus_are_named():
    assert crowded(64, 2) == "up to 64 ranks share the 2 CPUs of this machine, and its memory"


def test_a_machine_that_ends_every_round_is_given_up(monkeypatch, tmp_path):
    with cluster(monkeypatch, a=1) as (machines, ray):
        driver, tries = driver_of(machines, tmp_path, "1..1"), Tries(0)
        held = driver.gather()
        assert held is not None
        lost = held[0][0]
        lost.lost = "has lost the process that keeps its ranks"
        ended = Ended(1, "a has lost it", "", [lost], "")
        for _ in range(1 + RETRIES):  # the first loss is nobody's fault
            assert driver.after(ended, tries) is None
        with pytest.raises(GaveUp, match="without a new checkpoint: a has lost it"):
            driver.after(ended, tries)


def test_the_machines_are_asked_on_after_an_error_of_rays(monkeypatch, tmp_path):
    with cluster(monkeypatch, a=1) as (machines, ray):
        driver = driver_of(machines, tmp_path, "1..1")
        held = driver.gather()
        assert held is not None
        one, faults, wait = held[0][0], [], ray.wait

        def fails(*about, **more):
            if len(faults) < 3:
                faults.append(1)
                raise RuntimeError("the head is away")
            return wait(*about, **more)

        monkeypatch.setattr(ray, "wait", fails)
        until(lambda: len(faults) == 3)
        count = len(one.actor.called)
        until(lambda: len(one.actor.called) > count + 3)
        driver.check_lease()
        machines._ended.set()
        for thread in machines._threads:
            thread.join(10)
        with pytest.raises(GaveUp, match="asks after the machines"):
            driver.check_lease()


def test_a_ray_that_never_answers_makes_machines_fall_silent(monkeypatch, tmp_path):
    with cluster(monkeypatch, limits={"silence": 0.5}, a=1) as (machines, ray):
        held = driver_of(machines, tmp_path, "1..1", patience=math.inf).gather()
        assert held is not None
        one = held[0][0]
        until(lambda: one.answered)
        monkeypatch.setattr(ray, "wait", None)
        until(lambda: one.lost)
        assert "silent" in one.lost
