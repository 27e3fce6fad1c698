"""A run that is read as it grows: what was read part by part is what there is."""

import json
import math
import os
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.storages import Memory
from tests.surfaces.run_folders import row, written_run
from vtx_scale.checkpoints import lease
from vtx_scale.data_pipeline.objects import ObjectPath
from vtx_scale.launch import run_reader
from vtx_scale.launch.columns import Columns, buckets
from vtx_scale.launch.run_reader import RunReader
from vtx_scale.launch.summary import (
    Holder,
    Records,
    Summary,
    add_ledger,
    add_log,
    add_metrics,
    faults,
    resumes,
)
from vtx_scale.launch.tail import Tail
from vtx_scale.trainer.lines import truncate_after

STEPS = st.lists(st.integers(0, 30), max_size=60)
QUICK = settings(max_examples=60, deadline=None)


@given(STEPS)
@QUICK
def test_a_row_takes_back_its_step_and_beyond(steps):
    columns, wanted = Columns(), []
    for k, step in enumerate(steps):
        assert columns.add({"step": step, f"x{k % 3}": k, "y": None})
        wanted = [(s, n) for s, n in wanted if s < step] + [(step, k)]
    assert list(columns.steps) == [s for s, _ in wanted] and "y" not in columns.values
    for name in ("x0", "x1", "x2"):
        found = columns.of(name)
        assert not found or len(found) == len(wanted)
        for (_, k), value in zip(wanted, found, strict=False):
            assert value == k if name == f"x{k % 3}" else math.isnan(value)
    assert columns.redone == len(steps) - len(wanted)


@given(st.sets(st.integers(0, 5000), min_size=1), st.integers(1, 50), st.randoms())
@QUICK
def test_buckets_keep_lowest_and_highest(steps, count, rng):
    columns = Columns()
    for step in sorted(steps):
        columns.add({"step": step, "x": rng.choice([rng.gauss(0, 1), None])})
    found = list(buckets(columns, "x", count))
    values = [v for v in columns.of("x") if v == v]
    assert len(found) <= count
    if values:
        assert min(p[2] for p in found) == min(values)
        assert max(p[4] for p in found) == max(values)
    assert all(a[1] < b[0] for a, b in zip(found, found[1:], strict=False))
    assert all(p[0] <= p[1] and p[2] <= p[3] + 1e-9 and p[3] <= p[4] + 1e-9 for p in found)


class Lines:
    """What a reader has of a file, by what a Tail gives."""

    def __init__(self, path):
        self.tail, self.lines = Tail(path), []

    def read(self):
        self.tail.read()
        void, new = self.tail.take()
        self.lines = new if void else self.lines + new
        return self.lines


@given(st.lists(st.tuples(st.sampled_from(["add", "torn", "cut", "look"]), st.integers(0, 9))))
@QUICK
def test_a_tail_of_a_file_has_its_whole_lines(tmp_path_factory, events):
    """Whatever is added, torn and cut between two looks."""
    path = tmp_path_factory.mktemp("tail") / "metrics.jsonl"
    reader, step, number = Lines(path), 0, 0
    for event, n in events:
        if event == "add":
            for _ in range(n):
                step, number = step + 1, number + 1
                with path.open("ab") as file:
                    file.write(b'{"step":%d,"n":%d}\n' % (step, number))
        elif event == "torn" and n:
            number += 1
            with path.open("ab") as file:
                file.write(b'{"step":%d,"n":%d' % (step + 1, number))
        elif event == "cut" and path.exists():
            step = max(0, step - n)
            truncate_after(path, step)
        if event == "look":
            body = path.read_bytes() if path.exists() else b""
            assert reader.read() == body.split(b"\n")[:-1]


@given(st.lists(st.tuples(st.sampled_from(["add", "cut", "look"]), st.integers(0, 9))))
@QUICK
def test_a_tail_of_segments_has_their_lines(events):
    """In a bucket: also where numbers are taken again after a cut."""
    root = Memory()
    path = ObjectPath(root) / "run" / "metrics.jsonl"
    reader, step, number = Lines(path), 0, 0
    for event, n in events:
        names = sorted(root.objects)
        if event == "add" and n:
            body = b""
            for _ in range(n):
                step, number = step + 1, number + 1
                body += b'{"step":%d,"n":%d}\n' % (step, number)
            last = int(names[-1][-14:-6]) if names else 0
            root.put(f"run/metrics/{last + 1:08d}.jsonl", body)
        elif event == "cut":
            step = max(0, step - n)
            truncate_after(path, step)
        elif event == "look":
            body = b"".join(root.objects[name][0] for name in names if name.endswith(".jsonl"))
            assert reader.read() == body.split(b"\n")[:-1]


JUNK = st.sampled_from(
    [b"", b"{", b"[1]", b'{"step":true}', b'{"step":-1}', b'{"step":1e9}', b"\xff\x00", b"nul"]
)


@given(st.lists(st.one_of(st.integers(1, 40).map(lambda s: row(s)[:-1]), JUNK), max_size=60))
@QUICK
def test_lines_that_are_none_are_counted_and_nothing_more(lines):
    good = [line for line in lines if line.startswith(b'{"step":') and b"loss" in line]
    columns, alone = Columns(), Columns()
    bad = add_metrics(columns, lines)
    assert add_metrics(alone, good) == 0
    assert bad == len([line for line in lines if line]) - len(good)
    assert columns.steps == alone.steps and columns.values == alone.values


ENTRIES = st.sampled_from(
    [
        {"kind": "sample", "reason": "jpeg_corrupt", "step": 3, "slot": 1},
        {"kind": "sample", "reason": "jpeg_corrupt", "step": 3, "where": "evaluation"},
        {"kind": "retry", "reason": "died"},
        {"kind": "skip", "reason": "spike", "step": 9, "rank": 0, "samples": []},
        {"kind": "skip", "reason": "spike", "step": 9, "rank": 1, "samples": [4, 5]},
        {"kind": "restart", "reason": "signal 9", "step": 4, "time": 1.7e9},
        {"kind": "save_failed", "reason": "no room", "step": 4, "rank": 2},
        {"kind": "a_word_of_tomorrow", "x": [1, {"y": 2}]},
        {"kind": 7, "reason": None, "step": "soon", "time": "now"},
    ]
)


@given(st.lists(ENTRIES, max_size=40), st.integers(1, 5))
@QUICK
def test_the_ledger_in_pieces_is_the_ledger(entries, size):
    lines = [json.dumps(entry).encode() for entry in entries]
    whole, parts = Records(), Records()
    add_ledger(whole, lines)
    for k in range(0, len(lines), size):
        add_ledger(parts, lines[k : k + size])
    assert whole == parts
    masked = [e for e in entries if e["kind"] == "sample" and "where" not in e]
    assert sum(whole.masked.values()) == len(masked)
    assert len(whole.skipped) == any(e["kind"] == "skip" for e in entries)
    assert whole.count("restart") == sum(e["kind"] == "restart" for e in entries)
    faults(Summary("run", records=whole))


def test_steps_that_a_restart_cost():
    records = Records()
    restart = {"kind": "restart", "reason": "a worker ended with signal 9", "step": 40, "time": 1.0}
    back = {"kind": "decision", "reason": "roll_back", "decision": "00000001", "to": 60}
    add_ledger(records, [json.dumps(entry).encode() for entry in (restart, back)])
    at = b"2026-01-01 00:00:00 "
    log = [b"step 57/200  loss 1", b"resumed at step 40 of 200", b"Traceback", b"step 75/200  x"]
    log += [b"resumed at step 60 of 200", b"step 90/200  x", b"resumed at step 80 of 200"]
    add_log(records, [line if line == b"Traceback" else at + line for line in log])
    summary = Summary("run", records=records)
    assert [(e.kind, e.step, e.lost) for e in faults(summary)] == [
        ("restart", 40, 17),
        ("decision", 60, 15),
        ("resumed", 80, 10),
    ]
    assert summary.restarts == 2
    add_log(records, [at + b"4 ranks on 2 nodes: one, two"])
    assert (records.ranks, records.nodes) == (4, ["one", "two"])
    assert all(b"Traceback" not in line.encode() for line in records.news)


def test_steps_that_the_events_name():
    """A rank dies at 270 and the log knows nothing of it; a roll-back within an attempt counts."""

    def line(at, behind, step, attempt):
        spend = {"step": 9.0}
        about = {"behind": behind, "step": step, "attempt": attempt}
        return {"kind": "time", "from": at, "to": at + 9, "seconds": spend, **about}

    events = [
        line(0, 0, 200, "a"),
        line(10, 200, 270, "a"),
        {"kind": "end", "at": 19, "code": -9, "attempt": "a"},
        line(20, 200, 300, "b"),
        line(30, 240, 400, "b"),
        {"kind": "time", "from": "soon"},
        line(40, 400, 400, "c"),
    ]
    assert resumes(events) == [(200, 270), (240, 300), (400, 400)]
    at = b"2026-01-01 00:00:00 "
    records = Records()
    add_log(records, [at + b"resumed at step %d of 400" % s for s in (200, 240, 400)])
    summary = Summary("run", steps=400, records=records, resumes=resumes(events))
    assert [(e.step, e.lost) for e in faults(summary)] == [(200, 70), (240, 60)]
    assert summary.restarts == 2, "one that finds all steps done is none"


def test_pace_leaves_out_the_time_of_a_restart():
    columns = Columns()
    for step in range(1, 101):
        columns.add({"step": step, "time": 0.5 * step + 4000 * (step > 60)})
    summary = Summary("run", {"recipe": {}}, steps=300, columns=columns, checkpoints=[40])
    assert summary.left() == pytest.approx(100)
    assert summary.since_saved() == (60, pytest.approx(4030))


@pytest.mark.parametrize(
    "holder, checkpoints, state",
    [
        (Holder(), [], "waiting"),
        (Holder("p", 1, False), [], "held"),
        (Holder("p", 1, False, quiet=3, watched=5), [], "running"),
        (Holder("p", 1, False, quiet=31, watched=90), [20], "silent"),
        (Holder("p", 1, False, quiet=None, watched=31), [20], "silent"),
        (Holder("p", 1, True), [20], "left"),
        (Holder("p", 1, True), [20, 40], "finished"),
        (Holder("p", 1, False, quiet=1), [40], "finished"),
    ],
)
def test_what_a_run_does(holder, checkpoints, state):
    about = {"recipe": {"steps": 40}} if checkpoints else {}
    summary = Summary("run", about, steps=40, checkpoints=checkpoints, holder=holder)
    assert summary.state == state


class ReadOnly(Memory):
    """Refuses to be written, and counts what is read."""

    closed, bytes_read, requests = False, 0, 0

    def put(self, name, body):
        assert not self.closed, f"{name} is written"
        super().put(name, body)

    def delete(self, name):
        assert not self.closed, f"{name} is removed"
        super().delete(name)

    def get_range(self, name, offset, length, tag=None):
        body = super().get_range(name, offset, length, tag)
        self.bytes_read, self.requests = self.bytes_read + len(body), self.requests + 1
        return body


def test_only_what_is_new_is_read_and_nothing_is_written():
    root = ReadOnly()
    for k in range(30):
        body = b"".join(row(s + 1) for s in range(100 * k, 100 * (k + 1)))
        root.put(f"run/metrics/{k + 1:08d}.jsonl", body)
    root.put("run/run.json", b'{"recipe": {"steps": 4000}}')
    root.closed = True
    reader = RunReader(ObjectPath(root) / "run")
    assert reader.look().step == 3000 and root.requests == 30
    root.bytes_read = root.requests = 0
    assert reader.look().step == 3000 and root.bytes_read < 100 and root.requests == 1
    root.closed = False
    root.put("run/metrics/00000031.jsonl", row(3001))
    root.closed = True
    root.bytes_read = root.requests = 0
    assert reader.look().step == 3001 and root.bytes_read < 600 and root.requests == 2


def test_a_bucket_that_does_not_answer_costs_nothing_that_was_read():
    root, asked = ReadOnly(), []
    for k in range(9):
        root.put(f"run/metrics/{k + 1:08d}.jsonl", row(k + 1))
    root.put("run/run.json", b'{"recipe": {"steps": 40}}')
    plain = root.get_range

    def sometimes(name, *rest):
        asked.append(name)
        if len(asked) in (5, 8, 13):
            raise TimeoutError(110, "no answer", name)
        return plain(name, *rest)

    root.get_range = sometimes
    reader, failed = RunReader(ObjectPath(root) / "run"), 0
    for _ in range(8):
        try:
            assert reader.look().step == 9
            break
        except OSError:
            failed += 1
    assert 0 < failed < 8 and len(reader.columns) == 9


def test_whether_it_lives_is_seen_by_this_clock_alone(tmp_path, monkeypatch):
    """The times that the run wrote are those of 2023, and a beat is told by its change."""
    now = [1000.0]
    monkeypatch.setattr(run_reader.time, "monotonic", lambda: now[0])
    folder = written_run(tmp_path / "run")
    storage = run_reader.lease_of(folder)
    body = {"who": "process 7 on there", "state": "held", "beat": 0}
    storage.put(lease.name_of(3), json.dumps(body).encode())
    reader = RunReader(folder)
    assert reader.look().state == "held"
    now[0] += 10
    storage.put(lease.name_of(3), json.dumps({**body, "beat": 1}).encode())
    summary = reader.look()
    assert summary.state == "running" and summary.holder.quiet == 0
    now[0] += 31
    assert reader.look().state == "silent" and reader.look().holder.quiet == 31
    storage.put(lease.name_of(3), json.dumps({**body, "state": "released"}).encode())
    assert reader.look().state == "left"


def test_a_cut_run_is_read_again(tmp_path):
    folder = written_run(tmp_path / "run", ledger=({"kind": "skip", "reason": "x", "step": 110},))
    reader = RunReader(folder)
    assert reader.look().step == 120 and reader.look().records.skipped == {110: "x"}
    for name in ("metrics.jsonl", "ledger.jsonl"):
        truncate_after(folder / name, 80)
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b"".join(row(s, seed=1) for s in range(81, 140)))
    summary = reader.look()
    assert summary.step == 139 and not summary.records.skipped
    assert list(summary.columns.steps) == list(range(1, 140))
    wanted = [json.loads(row(s, seed=int(s > 80)))["loss"] for s in range(1, 140)]
    assert summary.columns.of("loss") == array("d", wanted)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"recipe": 3}', b"\xff"])
def test_a_damaged_run_json_is_said(tmp_path, body):
    folder = written_run(tmp_path / "run")
    (folder / "run.json").write_bytes(body)
    summary = RunReader(folder).look()
    assert "run.json" in summary.fault and summary.step == 120


def test_a_folder_that_is_not_there_yet(tmp_path):
    reader = RunReader(tmp_path / "run")
    assert reader.look().state == "waiting" and not os.path.exists(tmp_path / "run")
    written_run(tmp_path / "run")
    assert reader.look().step == 120


def test_a_look_that_fails_changes_nothing(tmp_path, monkeypatch):
    """What is drawn is one look, also while another has read a part."""
    folder = written_run(tmp_path / "run", ledger=({"kind": "retry"},))
    reader = RunReader(folder)
    before = reader.look()
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(row(121))
    plain = run_reader.steps

    def silent(storage):
        raise TimeoutError(110, "no answer")

    monkeypatch.setattr(run_reader, "steps", silent)
    for _ in range(2):
        with pytest.raises(TimeoutError):
            reader.look()
        assert before.step == 120 and before.records.retries == 1
    monkeypatch.setattr(run_reader, "steps", plain)
    assert reader.look().step == 121 and reader.look().records.retries == 1
