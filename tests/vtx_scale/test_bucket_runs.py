"""A run's folder where nothing can be appended: objects, segments, copies of either form."""

import contextlib
import fcntl
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.storages import Memory
from vtx_scale.checkpoints import lease
from vtx_scale.checkpoints.write import Writer
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.objects import Below, ObjectPath, storage_of
from vtx_scale.data_pipeline.storage import Changed, Folder
from vtx_scale.launch import run_folder
from vtx_scale.launch.paths import checkpoints_of, lease_of
from vtx_scale.trainer import output
from vtx_scale.trainer import segments as module
from vtx_scale.trainer.control import Control, Looked
from vtx_scale.trainer.events import Events
from vtx_scale.trainer.lines import truncate_logs_after, written
from vtx_scale.trainer.output import PLACE, Ledger, append
from vtx_scale.trainer.segments import SEGMENTS, Segments
from vtx_scale.trainer.tfrecords import event_files, records


@pytest.fixture(autouse=True)
def nothing_waits(monkeypatch):
    SEGMENTS.drop()
    monkeypatch.setattr(SEGMENTS, "_guards", {})
    monkeypatch.setattr(PLACE, "states", {name: output.State() for name in output.PLACES})
    yield
    SEGMENTS.drop()


@pytest.fixture(params=["bucket", "disk"])
def folder(request, tmp_path):
    return ObjectPath(Memory(), "runs/a") if request.param == "bucket" else tmp_path


class Away(Memory):
    """A bucket that can be away."""

    away = False

    def put(self, name, body):
        if self.away:
            raise OSError(5, "the server did not answer", name)
        super().put(name, body)


def metric(folder, *steps):
    for step in steps:
        append(folder / "metrics.jsonl", json.dumps({"step": step}).encode())


def seen(folder, name="metrics.jsonl"):
    return [row["step"] for row in written(folder / name)]


def test_a_path_of_objects_is_used_as_a_path(folder):
    """The same questions have the same answers."""
    storage_of(folder).put("a/b.json", b"{}")
    storage_of(folder / "a").put("c/d", b"1")
    file = folder / "a" / "b.json"
    assert (file.name, file.stem, str(file.parent)) == ("b.json", "b", f"{folder}/a")
    assert file.read_text() == "{}" and file.exists() and file.is_file() and not file.is_dir()
    assert (folder / "a").is_dir() and (folder / "a").exists() and not (folder / "a").is_file()
    assert sorted(p.name for p in (folder / "a").iterdir()) == ["b.json", "c"]
    assert not (folder / "b").exists() and not (folder / "a/b.jso").exists()
    with pytest.raises(FileNotFoundError):
        (folder / "b").read_bytes()
    with pytest.raises(FileNotFoundError):
        (folder / "b").unlink()
    (folder / "b").unlink(missing_ok=True)
    file.unlink()
    assert not file.exists() and list(storage_of(folder).list("")) == ["a/c/d"]


def test_lines_are_sent_together_and_in_order():
    folder = ObjectPath(Memory(), "runs/a")
    metric(folder, 1, 2, 3)
    assert not list(folder.root.list("")), "each line was a request"
    assert SEGMENTS.flush(5) and seen(folder) == [1, 2, 3]
    metric(folder, 4)
    assert SEGMENTS.flush(5) and seen(folder) == [1, 2, 3, 4]
    assert list(folder.root.list("")) == [f"runs/a/metrics/{n:08d}.jsonl" for n in (1, 2)]


def test_a_full_segment_and_one_that_waited_are_sent_unasked(monkeypatch):
    monkeypatch.setattr(module, "EVERY", 0.3)
    folder = ObjectPath(Memory())
    metric(folder, 1)
    began = time.monotonic()
    while not seen(folder):
        assert time.monotonic() - began < 5
        time.sleep(0.01)
    assert time.monotonic() - began >= 0.25
    monkeypatch.setattr(module, "EVERY", 1000.0)
    for step in range(2, 1200):
        append(folder / "metrics.jsonl", json.dumps({"step": step, "x": "y" * 1000}).encode())
    while len(seen(folder)) < 1000:
        assert time.monotonic() - began < 10
        time.sleep(0.01)


def test_another_process_may_write_in_the_same_place(monkeypatch):
    """The launcher and rank 0 do; no segment takes the place of another."""
    root = Memory()
    both = [ObjectPath(root), ObjectPath(root)]
    mine = [Segments(), Segments()]
    for k in range(6):
        place = both[k % 2] / "ledger.jsonl"
        mine[k % 2].add(place, b'{"step": %d}\n' % k, module.sender(place))
        assert mine[k % 2].flush(5)
    assert seen(both[0], "ledger.jsonl") == list(range(6))
    assert list(root.list("")) == [f"ledger/00000-{n:08d}.jsonl" for n in range(1, 7)]
    monkeypatch.setenv("RANK", "3")
    Ledger(both[0]).write(kind="skip", step=9)
    assert SEGMENTS.flush(5) and (both[0] / "ledger/00003-00000001.jsonl").is_file()


class Unread(Memory):
    """A bucket in which one object cannot be read, so many times."""

    times, fault = 0, OSError(5, "the server did not answer")

    def open(self, name):
        if self.times and name.endswith(".jsonl"):
            self.times -= 1
            raise self.fault
        return super().open(name)


def test_lines_that_cannot_be_read_are_not_none(tmp_path):
    """Whoever asks hears of it, and one that is replaced just then is asked for again."""
    folder = ObjectPath(Unread(), "run")
    assert written(folder / "metrics.jsonl") == []
    metric(folder, 1, 2)
    assert SEGMENTS.flush(5)
    folder.root.times = 1
    with pytest.raises(OSError, match="did not answer"):
        written(folder / "metrics.jsonl")
    folder.root.times, folder.root.fault = 2, Changed(116, "another by now")
    assert seen(folder) == [1, 2]
    folder.root.times = 1000
    with pytest.raises(Changed):
        written(folder / "metrics.jsonl")
    folder.root.times, folder.root.fault = 1, FileNotFoundError(2, "gone since")
    assert seen(folder) == []
    (tmp_path / "metrics.jsonl").symlink_to("/proc/self/mem")
    with pytest.raises(OSError):
        written(tmp_path / "metrics.jsonl")


def test_no_checkpoint_is_removed_where_the_best_cannot_be_known():
    """One failed read must not cost the best one; the next save removes what is too many."""
    from tests.vtx_scale.test_retention import recipe
    from vtx_scale.checkpoints.format import manifest_name, steps
    from vtx_scale.checkpoints.write import prune
    from vtx_scale.launch.retention import stays

    folder = ObjectPath(Unread(), "run")
    for step, top1 in ((2, 0.9), (4, 0.5), (6, 0.1)):
        row = json.dumps({"name": "zero_shot", "step": step, "top1": top1}).encode()
        append(folder / "evaluations.jsonl", row)
    assert SEGMENTS.flush(5)
    stored = checkpoints_of(folder)
    for step in (2, 4, 6):
        stored.put(manifest_name(step), b"{}")
    chosen = stays(recipe("checkpoint.best=zero_shot/top1"), folder)
    folder.root.times = 1
    with contextlib.suppress(OSError):
        prune(stored, 1, chosen)
    assert steps(stored) == [2, 4, 6]
    assert prune(stored, 1, chosen) == [4] and steps(stored) == [2, 6]


def test_what_cannot_be_read_is_no_step_to_amend_behind():
    from tests.runs import smoke
    from vtx_scale.launch.amend import check_step

    folder = ObjectPath(Unread(), "run")
    metric(folder, 1, 2, 3)
    assert SEGMENTS.flush(5)
    folder.root.times = 1
    with pytest.raises(UserError, match="metrics.jsonl cannot be read .*: try again"):
        check_step(folder, smoke(), 2)
    with pytest.raises(UserError, match="has finished step 3"):
        check_step(folder, smoke(), 2)


def test_a_start_goes_on_where_what_informs_cannot_be_read(capfd):
    """What was due is evaluated again, and decisions are named by the next start."""
    from types import SimpleNamespace

    from tests.vtx_scale.test_retention import recipe
    from vtx_scale.distributed.ranks import Ranks
    from vtx_scale.launch.decided import Decision
    from vtx_scale.launch.decisions import tell
    from vtx_scale.launch.restore import overdue

    folder, run = ObjectPath(Unread(), "run"), recipe()
    strategy: Any = SimpleNamespace(all=Ranks(), device="cpu")
    append(folder / "evaluations.jsonl", b'{"name": "zero_shot", "step": %d}' % run.steps)
    decisions = [Decision(1, 5, key="optim.lr", value="*0.5")]
    tell(folder, decisions)
    assert SEGMENTS.flush(5)
    for times in (1, 0):
        folder.root.times = times
        again = overdue(run, folder, run.steps, strategy)
        assert again == (["zero_shot"] if times else [])
        folder.root.times = times
        tell(folder, decisions)
        assert SEGMENTS.flush(5) and len(written(folder / "ledger.jsonl")) == 1
    said = capfd.readouterr().err
    assert "evaluations.jsonl cannot be read" in said and "ledger.jsonl cannot be read" in said


def test_a_hint_names_no_command_for_files_where_there_are_none(tmp_path):
    from vtx_scale.launch.amend import hint
    from vtx_scale.launch.decided import Decision

    made = Decision(1, 5, key="optim.lr", value="*0.5")
    assert f"touch {tmp_path}/control/stop" in hint(tmp_path, made)
    said = hint(ObjectPath(Memory(), "run"), made)
    assert "touch" not in said and "mkdir" not in said
    assert "an empty object at" in said and "run/control/stop" in said and "SIGTERM" in said


def test_evaluations_are_one_object_that_several_add_to():
    root = Memory()
    mine = [Segments() for _ in range(4)]

    def write(k):
        place = ObjectPath(root, "evaluations.jsonl")
        for step in range(10):
            mine[k].add(place, b'{"step": %d}\n' % (10 * k + step), module.sender(place))
            mine[k].flush(5)

    threads = [threading.Thread(target=write, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(root.list("")) == ["evaluations.jsonl"]
    assert sorted(seen(ObjectPath(root), "evaluations.jsonl")) == list(range(40))


def test_a_bucket_that_is_away_holds_nobody_up_and_what_waited_is_there_later(monkeypatch):
    monkeypatch.setattr(module, "AGAIN", 0.05)
    folder = ObjectPath(Away())
    folder.root.away = True
    began = time.monotonic()
    metric(folder, *range(1, 101))
    assert time.monotonic() - began < 1 and not SEGMENTS.flush(0.1)
    assert PLACE.states["metrics.jsonl"].dropped == 0
    folder.root.away = False
    assert SEGMENTS.flush(5) and seen(folder) == list(range(1, 101))


class Unheard(Memory):
    """A bucket that stores what it is sent, and whose answers are lost, so many times."""

    lost = 0

    def answer(self, value):
        if self.lost:
            self.lost -= 1
            raise OSError(5, "no answer in 8 tries")
        return value

    def put(self, name, body):
        super().put(name, body)
        self.answer(None)

    def put_if_absent(self, name, body):
        return super().put_if_absent(name, body) or self.answer(False)

    def replace_if(self, name, body, tag):
        with self.lock:
            if self.objects[name][1] != tag:
                return None
            self.put(name, body)
            return self.objects[name][1]


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("name", ["metrics.jsonl", "ledger.jsonl", "evaluations.jsonl"])
def test_what_was_stored_without_an_answer_is_there_once(monkeypatch, name, times):
    """Also where more has come since, and where another process wrote meanwhile."""
    monkeypatch.setattr(module, "AGAIN", 0.02)
    folder = ObjectPath(Unheard())
    append(folder / name, b'{"step": 1}')
    assert SEGMENTS.flush(5)
    folder.root.lost = times
    append(folder / name, b'{"step": 2}')
    SEGMENTS.flush(0)
    wait_until(lambda: folder.root.lost < times)
    append(folder / name, b'{"step": 3}')
    other = Segments()
    other.add(folder / name, b'{"step": 9}\n', module.sender(folder / name))
    assert SEGMENTS.flush(5) and other.flush(5)
    assert sorted(seen(folder, name)) == [1, 2, 3, 9]
    append(folder / name, b'{"step": 3}')  # the same line again is another one
    assert SEGMENTS.flush(5) and sorted(seen(folder, name)) == [1, 2, 3, 3, 9]


def test_events_that_were_stored_without_an_answer_are_there_once(monkeypatch):
    monkeypatch.setattr(module, "AGAIN", 0.02)
    folder = ObjectPath(Unheard(), "tensorboard")
    events = Events(folder)
    folder.root.lost = 1
    events.add_scalar("train/loss", 1.0, 1)
    SEGMENTS.flush(0)
    wait_until(lambda: not folder.root.lost)
    events.add_scalar("train/loss", 2.0, 2)
    assert SEGMENTS.flush(5) and len(event_files(folder)) == 2
    bodies = [path.read_bytes() for path in event_files(folder)]
    assert [len(list(records(body))) for body in bodies] == [2, 2]  # each begins with a version


def wait_until(what):
    until = time.monotonic() + 5
    while not what():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_who_lost_the_lease_adds_no_lines(capfd):
    """As a job that was suspended past it, and wakes."""
    folder = ObjectPath(Memory(), "run")
    held = lease.acquire(lease_of(folder), {"who": "a job"})
    run_folder.send_while_held(folder, held.epoch)
    metric(folder, 1, 2)
    assert SEGMENTS.flush(5)
    metric(folder, 3, 4)  # and now it is suspended
    held._ended.set()
    held._thread.join()
    other = lease.acquire(lease_of(folder), {"who": "the next job"}, ttl=0.2, poll=0.02)
    theirs, place = Segments(), folder / "metrics.jsonl"
    theirs.add(place, b'{"step": 3}\n', module.sender(place))
    append(folder / "evaluations.jsonl", b'{"step": 4}')
    assert theirs.flush(5) and not SEGMENTS.flush(5)
    metric(folder, 5)
    began = time.monotonic()
    output.send_rest()
    assert time.monotonic() - began < 5, "it waits for what may not be sent"
    assert seen(folder) == [1, 2, 3] and seen(folder, "evaluations.jsonl") == []
    assert PLACE.states["metrics.jsonl"].dropped == 3
    assert PLACE.states["evaluations.jsonl"].dropped == 1
    assert "the next job has taken the run over" in capfd.readouterr().err
    run_folder.send_while_held(folder, other.epoch)  # this process is the next job
    metric(folder, 4)
    assert SEGMENTS.flush(5) and seen(folder) == [1, 2, 3, 4]
    other.close()


def test_a_lease_that_cannot_be_asked_for_costs_no_line(monkeypatch):
    monkeypatch.setattr(module, "AGAIN", 0.02)
    folder, answers = ObjectPath(Memory(), "run"), [OSError(5, "no answer")] * 2

    def lost():
        if answers:
            raise answers.pop()
        return ""

    SEGMENTS.guard(str(folder), lost)
    metric(folder, 1)
    SEGMENTS.flush(0)
    wait_until(lambda: not answers)
    assert SEGMENTS.flush(5) and seen(folder) == [1]


def test_what_has_no_room_is_dropped_and_counted(monkeypatch, capfd):
    monkeypatch.setattr(module, "ROOM", 1000)
    folder = ObjectPath(Away())
    folder.root.away = True
    metric(folder, *range(1, 101))
    dropped = PLACE.states["metrics.jsonl"].dropped
    assert 0 < dropped < 100 and "metrics.jsonl cannot be written" in capfd.readouterr().err
    output.send_rest(0.1)  # the end, and it is still away
    assert PLACE.states["metrics.jsonl"].dropped == 100


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 3), max_size=4), max_size=6),
    st.integers(0, 20),
    st.booleans(),
)
def test_what_is_cut_at_a_resume_is_what_is_cut_of_a_file(parts, step, copied):
    """Whatever was sent together: steps that ascend, lines of none, and what is no line."""
    SEGMENTS.drop()
    root, at, rows = Memory(), 0, []
    folder = ObjectPath(root, "run")
    for number, part in enumerate(parts, 1):
        body = b""
        for more in part:
            at += more
            rows.append(at if more else None)
            body += b'{"step": %d}\n' % at if more else b'{"kind": "decision"}\n'
        name = (
            "run/ledger.jsonl" if copied and number == 1 else f"run/ledger/00000-{number:08d}.jsonl"
        )
        if body:
            root.put(name, body + (b"torn\n" if number == len(parts) else b""))
    truncate_logs_after(folder, step)
    kept = [row.get("step") for row in written(folder / "ledger.jsonl")]
    wanted = [row for row in rows if row is None or row <= step]
    # nothing that stands before a step that stays is beyond it
    assert kept == wanted
    before = dict(root.objects)
    truncate_logs_after(folder, step)
    assert root.objects == before, "a second time changed something"


def test_older_segments_are_not_read_again(monkeypatch):
    folder = ObjectPath(Memory())
    for step in range(1, 9):
        metric(folder, step)
        SEGMENTS.flush(5)
    asked = []
    plain = folder.root.open
    monkeypatch.setattr(folder.root, "open", lambda name: asked.append(name) or plain(name))
    truncate_logs_after(folder, 6)
    assert [int(name[8:16]) for name in asked] == [8, 7, 6] and seen(folder) == [1, 2, 3, 4, 5, 6]
    metric(folder, 7)
    SEGMENTS.flush(5)
    assert seen(folder) == [1, 2, 3, 4, 5, 6, 7]


def test_a_copy_on_disk_is_cut_and_read_with_what_is_added_to_it(tmp_path):
    root = Memory()
    metric(ObjectPath(root), 1, 2)
    SEGMENTS.flush(5)
    metric(ObjectPath(root), 3, 4)
    SEGMENTS.flush(5)
    for name in root.list(""):
        Folder(tmp_path).put(name, root.objects[name][0])
    truncate_logs_after(tmp_path, 3)
    metric(tmp_path, 4, 5)
    assert seen(tmp_path) == [1, 2, 3, 4, 5]
    back = ObjectPath(Memory())
    for name in Folder(tmp_path).list(""):
        back.root.put(name, (tmp_path / name).read_bytes())
    (tmp_path / "metrics" / "00000001.jsonl").unlink()
    assert seen(tmp_path) == [3, 4, 5]


def test_events_are_files_that_tensorboard_reads(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = ObjectPath(Memory(), "tensorboard")
    first = Events(folder)
    for step in range(1, 7):
        first.add_scalar("train/loss", float(step), step)
        if step % 2 == 0:
            assert SEGMENTS.flush(5)
    assert len(event_files(folder)) == 3
    second = Events(folder, resumed=3)
    for step in range(4, 6):
        second.add_scalar("train/loss", -float(step), step)
    assert SEGMENTS.flush(5)
    for path in event_files(folder):
        body = path.read_bytes()
        assert [end for end, _ in records(body)][-1] == len(body)
        Folder(tmp_path).put(path.name, body)
    board = EventAccumulator(str(tmp_path))
    board.Reload()
    found = {e.step: e.value for e in board.Scalars("train/loss")}
    assert found == {1: 1.0, 2: 2.0, 3: 3.0, 4: -4.0, 5: -5.0}


def test_a_stop_object_is_looked_for_now_and_then():
    asked = []

    class Counted(Memory):
        def head(self, name):
            asked.append(name)
            return super().head(name)

    folder = ObjectPath(Counted(), "run")
    stop = Control(folder, 0).stop_file
    assert isinstance(stop, Looked) and stop.every == 5.0
    stop.every = 0.1
    began = time.monotonic()
    for _ in range(200):
        assert not stop.exists()
        time.sleep(0.001)
    assert set(asked) == {"run/control/stop"}
    assert len(asked) <= (time.monotonic() - began) / 0.1 + 2
    folder.root.put("run/control/stop", b"")
    until = time.monotonic() + 5
    while not stop.exists():
        assert time.monotonic() < until
        time.sleep(0.01)


class Shared(Folder):
    """A folder in the place of a bucket that two processes see."""

    def __init__(self, root):
        super().__init__(Path(root))


def killed_holder(folder) -> None:
    """The lease is another process's, which refuses us while it lives."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            held = run_folder.acquire_lease(folder)
            os.write(writer, b"%d" % held.epoch)
            time.sleep(60)
        finally:
            os._exit(1)
    try:
        assert os.read(reader, 9) == b"1"
        with pytest.raises(UserError, match=f"is being written by process {child} on"):
            run_folder.acquire_lease(folder)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.parametrize("place", ["here", "another container"])
def test_a_lease_in_a_bucket_is_taken_over_at_once_where_its_lock_says_so(
    tmp_path, monkeypatch, place
):
    """Another container of this machine may see no lock: there time must show."""
    folder = ObjectPath(Shared(tmp_path / "run"))
    killed_holder(folder)
    defaults = lease.acquire.__defaults__
    monkeypatch.setattr(lease.acquire, "__defaults__", (*defaults[:2], 0.8, 0.02))
    if place != "here":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    said, began = [], time.monotonic()
    with run_folder.acquire_lease(folder, said.append) as held:
        assert held.epoch == 2
    took = time.monotonic() - began
    assert (took < 0.7 and not said) if place == "here" else (took >= 0.8 and len(said) == 1)


def test_a_step_does_not_wait_for_a_storage_that_is_silent():
    """It asks whether the lease is another's; what it hears late counts at a later step."""
    answer = threading.Event()

    def held():
        answer.wait(20)
        raise lease.Lost("another job has it")

    writer = Writer(Memory(), 0, 1, "a", 1, held=held)
    began = time.monotonic()
    for _ in range(5):
        writer._look = 0.0  # it is time to ask
        assert writer.error is None
    assert time.monotonic() - began < 5
    answer.set()
    writer._asking.join()
    writer.error = None  # a save has begun since
    writer._look = 0.0
    assert "another job has it" in writer.error and writer.lost


def test_staged_files_wait_in_scratch_and_those_of_the_dead_are_removed(tmp_path):
    root = Memory()
    storage = checkpoints_of(ObjectPath(root, "run"), str(tmp_path / "scratch"))
    left = tmp_path / "scratch" / ".vtx-data-00000.0123abcd.part"
    left.mkdir(parents=True)
    from vtx_scale.data_pipeline.publish import machine

    (left / f"lock-{machine()}").touch()
    (left / "file").write_bytes(b"of one that was killed")
    with storage.scratch("step-00000001/data-00000.e1.safetensors") as path:
        path.write_bytes(b"body")
        assert path.is_relative_to(tmp_path / "scratch") and not left.exists()
        with pytest.raises(BlockingIOError), (next(path.parent.glob("lock-*"))).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        storage.put_file("step-00000001/data", path)
    assert not os.listdir(tmp_path / "scratch")
    assert dict(root.objects)["run/checkpoints/step-00000001/data"][0] == b"body"


def test_a_tokenizer_is_read_from_a_copy_that_is_what_it_was(tmp_path, monkeypatch):
    from tests.runs import smoke
    from vtx_scale.launch import outside

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = ObjectPath(Memory(), "run")
    body = b"a tokenizer"
    digest = outside.hashlib.sha256(body).hexdigest()
    known = {"data.tokenizer": {"path": "/a", "digest": digest, "file": "tokenizer/t.json"}}
    with pytest.raises(UserError, match="cannot be read"):
        outside.held(smoke(), folder, known)
    storage_of(folder).put("tokenizer/t.json", b"another one")
    for _ in range(2):  # a wrong copy is not kept
        with pytest.raises(UserError, match="is not the tokenizer that this run was trained with"):
            outside.held(smoke(), folder, known)
    assert not list(tmp_path.rglob("t.json")), "a copy of another tokenizer is kept"
    storage_of(folder).put("tokenizer/t.json", body)
    for _ in range(2):
        copy = Path(outside.held(smoke(), folder, known).data.tokenizer)
        assert copy.read_bytes() == body and copy.is_relative_to(tmp_path)
        folder.root.objects.clear()  # it is here now


def test_below_is_a_storage_of_what_lies_below():
    root = Memory()
    inner = Below(Below(root, "a"), "b/")
    assert inner.put_if_absent("x", b"1") and not inner.put_if_absent("x", b"2")
    assert list(root.list("")) == ["a/b/x"] and list(inner.list("")) == ["x"]
    tag = inner.head("x").tag
    assert inner.replace_if("x", b"3", "no") is None and inner.replace_if("x", b"3", tag)
    assert inner.get_range("x", 0, 9) == b"3" and str(inner).endswith("/a/b")
    inner.delete("x")
    assert not list(root.list(""))
