"""`log.to`: a sink of somebody else gets every number once, and ends nothing."""

import json
import os
import struct
import subprocess
import sys
import threading
import time

import pytest

from tests.require import need
from tests.runs import lines, losses, smoke, train, vtx
from vtx_scale.launch.override import recipe_hash
from vtx_scale.trainer.feed import Feed
from vtx_scale.trainer.output import PLACE

SINK = """
import json, os, time

class Lines:
    def __init__(self, recipe, run_id, begin):
        self.path = os.environ["SINK_FILE"]
        rows = open(self.path).read().splitlines() if os.path.exists(self.path) else []
        kept = [row for row in rows if json.loads(row)["step"] <= begin]
        with open(self.path, "w") as f:
            f.writelines(row + "\\n" for row in kept)
        self.add({"step": begin, "id": run_id, "rows": len(rows), "steps": recipe["steps"]})

    def add(self, row):
        with open(self.path, "a") as f:
            f.write(json.dumps(row) + "\\n")

    def write(self, step, values):
        self.add({"step": step, **values})

    def close(self):
        self.add({"step": 0, "closed": True})

def hangs(recipe, run_id, begin):
    time.sleep(1000)

def fails(recipe, run_id, begin):
    raise SystemExit("no such board")
"""


@pytest.fixture
def sink(tmp_path):
    (tmp_path / "sink_for_tests.py").write_text(SINK)
    return str(tmp_path / "sink_for_tests.py")


@pytest.fixture(autouse=True)
def counted_anew(monkeypatch):
    monkeypatch.setattr(PLACE, "folder", None)
    state = PLACE.states["log.to"]
    state.dropped = state.now = 0
    state.announced = False
    yield
    state.dropped = state.now = 0
    state.announced = False


class Kept:
    """A sink that does what it is asked to."""

    def __init__(self, act=lambda step: None):
        self.rows, self.act, self.closed = [], act, False

    def write(self, step, values):
        self.act(step)
        self.rows.append((step, values))

    def close(self):
        self.closed = True


def test_each_write_comes_once_in_order_and_the_sink_is_closed():
    kept, threads = Kept(), set()
    kept.act = lambda step: threads.add(threading.current_thread())
    feed = Feed(lambda: kept)
    assert not feed.thread.is_alive()  # a process may fork until then
    for step in range(1, 201):
        feed.write(step, {"loss": 1 / step, "name": "a word", "samples": step})
    feed.close()
    assert kept.rows == [(s, {"loss": 1 / s, "samples": float(s)}) for s in range(1, 201)]
    assert kept.closed and threads == {feed.thread} and not feed.thread.is_alive()
    assert PLACE.states["log.to"].dropped == 0


@pytest.mark.parametrize("fault", [OSError("no network"), SystemExit(3), KeyboardInterrupt()])
def test_a_sink_that_raises_is_counted_and_said_once(fault, capfd):
    def act(step):
        if step in (2, 3):
            raise fault

    kept = Kept(act)
    feed = Feed(lambda: kept)
    for step in range(1, 5):
        feed.write(step, {"loss": 0.0})
        for _ in range(500):
            if feed.waiting.qsize():
                time.sleep(0.01)
    feed.close()
    assert [step for step, _ in kept.rows] == [1, 4] and kept.closed
    assert PLACE.states["log.to"].dropped == 2
    heard = capfd.readouterr().err
    assert heard.count("log.to cannot be written (") == 1, heard
    assert "log.to can be written again: 2 writes were dropped" in heard


def test_a_sink_that_cannot_be_opened(capfd):
    def begin():
        raise ValueError("no such project")

    feed = Feed(begin)
    for step in range(1, 4):
        feed.write(step, {"loss": 0.0})
    feed.close()
    assert PLACE.states["log.to"].dropped == 3
    assert capfd.readouterr().err.count("ValueError: no such project") == 1


def test_a_sink_that_hangs_holds_nobody_up(capfd):
    go = threading.Event()
    kept = Kept(lambda step: go.wait(60))
    feed = Feed(lambda: kept, room=5)
    began = time.monotonic()
    for step in range(1, 41):
        feed.write(step, {"loss": 0.0})
    assert time.monotonic() - began < 5
    state = PLACE.states["log.to"]
    assert 33 <= state.dropped <= 35  # five wait, and the sink has one
    feed.close(patience=0.2)
    assert time.monotonic() - began < 6 and 39 <= state.dropped <= 40
    go.set()
    feed.thread.join(5)
    assert not feed.thread.is_alive()
    assert [step for step, _ in kept.rows] == [1]  # what was dropped is not written later
    assert capfd.readouterr().err.count("log.to cannot be written (the sink is behind)") == 1


def test_where_numbers_go_is_no_part_of_what_is_learned(sink):
    run = smoke(f"log.to={sink}:Lines")
    assert run.log.to.endswith(":Lines") and recipe_hash(run) == recipe_hash(smoke())


@pytest.mark.parametrize(
    "to,says",
    [
        ("wandbb", "log.to=wandbb: give wandb, mlflow, path.py:function or module:function."),
        ("gone.py:open_sink", "gone.py does not exist"),
        ("SINK:nothing", "has no function 'nothing'"),
        ("no_such_module:f", "cannot be imported"),
    ],
)
def test_a_sink_that_is_none_is_refused(to, says, sink, tmp_path):
    to = to.replace("SINK", sink)
    done = vtx("train", "clip_vit_b32", "--smoke", "--run", tmp_path / "run", f"log.to={to}")
    assert done.returncode == 2 and says in done.stderr and not (tmp_path / "run").exists()
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_that_was_killed_logs_no_step_twice(sink, tmp_path, monkeypatch):
    """And one that began without a sink goes on with one, and the other way round."""
    env = {"SINK_FILE": str(tmp_path / "rows")}
    keys = ("steps=14", "checkpoint.every=4", "evaluate.0.every=5")
    run = tmp_path / "run"
    train(run, *keys, "system.leave_after=2", code=75)
    assert "id" not in json.loads((run / "run.json").read_text())
    monkeypatch.chdir(tmp_path)  # from where the file is named
    to = "log.to=sink_for_tests.py:Lines"
    killed = {"VTX_KILL": "step-11:0", "VTX_KILL_ONCE": str(tmp_path)}
    train(run, *keys, to, env={**env, **killed}, code=-9)
    monkeypatch.chdir("/")
    about = json.loads((run / "run.json").read_text())
    assert about["recipe"]["log"]["to"] == f"{sink}:Lines", "as it is reached from anywhere"
    train(run, *keys, f"log.to={sink}:Lines", env=env)
    rows = lines(tmp_path / "rows")
    assert json.loads((run / "run.json").read_text())["recipe"]["log"]["to"] == f"{sink}:Lines"
    numbers = [r for r in rows if "loss" in r]
    assert [r["step"] for r in numbers] == list(range(3, 15))
    assert [r["loss"] for r in numbers] == losses(run)[2:]
    evaluations = [r["step"] for r in rows if "zero_shot/top1" in r]
    assert evaluations == [5, 10, 14] and rows[-1] == {"step": 0, "closed": True}
    starts = [r for r in rows if "id" in r]
    assert [r["step"] for r in starts] == [2, 8] and starts[1]["rows"] > 7
    assert starts[0]["id"] == starts[1]["id"] and starts[0]["id"].startswith("run-")
    assert starts[0]["steps"] == 14
    train(tmp_path / "other", *keys)
    assert losses(run) == losses(tmp_path / "other")


@pytest.mark.slow
@pytest.mark.parametrize("function", ["hangs", "fails"])
def test_a_sink_ends_no_training(sink, tmp_path, function):
    done = train(tmp_path / "run", "steps=4", f"log.to={sink}:{function}")
    assert len(losses(tmp_path / "run")) == 4
    said = [line for line in done.stderr.splitlines() if line.startswith("log.to cannot be")]
    assert len(said) == 1, done.stderr
    (row,) = [r for r in lines(tmp_path / "run" / "ledger.jsonl") if r.get("place") == "log.to"]
    assert row["kind"] == "dropped" and row["count"] >= 4
    assert ("SystemExit" in row["reason"]) == (function == "fails")


def log_records(body):
    """The records of a log of LevelDB's format, behind a head of seven bytes."""
    at, record = 7, b""
    while at + 7 <= len(body):
        left = 32768 - at % 32768
        if left < 7:  # a block's end is padded
            at += left
            continue
        _, n, kind = struct.unpack_from("<IHB", body, at)
        if not kind:
            return
        record += body[at + 7 : at + 7 + n]
        at += 7 + n
        if kind in (1, 4):  # whole, or its last part
            yield record
            record = b""


@pytest.mark.slow
@pytest.mark.services
def test_weights_and_biases_offline(tmp_path):
    need("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    env = {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "HOME": str(tmp_path)}
    train(tmp_path / "run", "steps=6", "log.to=wandb", env=env)
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    rows, config, ended = {}, {}, False
    for body in log_records(file.read_bytes()):
        record = Record.FromString(body)
        if record.HasField("run"):
            assert record.run.run_id.startswith("run-") and record.run.project == "vtx-scale"
            config |= {u.key: json.loads(u.value_json) for u in record.run.config.update}
        if record.HasField("history"):
            items = record.history.item
            row = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
            rows.setdefault(int(row["_step"]), {}).update(row)
        ended |= record.HasField("exit")
    assert ended, sorted(rows)
    assert config["steps"] == 6 and config["optim"]["lr"] > 0
    assert [rows[s]["loss"] for s in range(1, 7)] == losses(tmp_path / "run")
    assert "zero_shot/top1" in rows[6]


@pytest.mark.slow
@pytest.mark.services
def test_mlflow_and_a_run_that_goes_on(tmp_path):
    need("mlflow")
    where = f"file://{tmp_path}/boards"
    env = {"MLFLOW_TRACKING_URI": where, "MLFLOW_ALLOW_FILE_STORE": "true"}
    keys = ("steps=9", "checkpoint.every=3", "log.to=mlflow")
    killed = {"VTX_KILL": "step-6:0", "VTX_KILL_ONCE": str(tmp_path)}
    train(tmp_path / "run", *keys, env={**env, **killed}, code=-9)
    train(tmp_path / "run", *keys, env=env)
    code = (
        "import json, sys; from mlflow import MlflowClient; c = MlflowClient();"
        "e = c.get_experiment_by_name('vtx-scale').experiment_id; (r,) = c.search_runs([e]);"
        "h = c.get_metric_history(r.info.run_id, 'loss');"
        "print(json.dumps([r.data.params, r.info.status, [[m.step, m.value] for m in h],"
        "sorted(r.data.metrics)]))"
    )
    out = subprocess.check_output([sys.executable, "-c", code], env={**os.environ, **env})
    params, status, history, names = json.loads(out.splitlines()[-1])
    assert [step for step, _ in sorted(history)] == list(range(1, 10))
    assert [loss for _, loss in sorted(history)] == losses(tmp_path / "run")
    assert params["steps"] == "9" and params["global_batch"] == "16" and status == "FINISHED"
    assert "zero_shot/top1" in names
