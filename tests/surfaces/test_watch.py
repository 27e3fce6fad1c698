"""`vtx watch`: a block in a pipe, live in a terminal, and nothing of it touches the run."""

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from pathlib import Path

import pytest
from rich.console import Console

from tests.runs import environment, vtx
from tests.surfaces.run_folders import files_of, recipe, row, written_run
from vtx_scale.checkpoints import lease
from vtx_scale.data_pipeline.storage import Folder
from vtx_scale.launch import watch
from vtx_scale.launch.columns import Columns
from vtx_scale.launch.run_reader import RunReader
from vtx_scale.launch.summary import Holder, Records, Summary, add_ledger, add_log
from vtx_scale.launch.watch_view import BARS, PLAIN_BARS, causes, duration, sparkline, view
from vtx_scale.trainer.goodput import Goodput

LEDGER = (
    {"kind": "sample", "reason": "jpeg_corrupt", "step": 3},
    {"kind": "restart", "reason": "a worker ended with signal 9", "step": 80, "time": 1.7e9},
    {"kind": "save_failed", "reason": "No space left on device", "step": 100, "rank": 1},
    {"kind": "skip", "reason": "spike", "step": 90, "rank": 0},
)
LOG = ("step 120/200  loss 0.9", "\x1b[2Jcleared \u202e")
SPEND = {"start.import": 5.0, "start.load": 5.0, "step": 80.0, "data_wait": 5.0, "lost": 5.0}


def shown_at(width: int, summary: Summary, **options: object) -> str:
    console = Console(width=width, file=io.StringIO(), highlight=False)
    console.print(view(summary, width, **options))
    return console.file.getvalue()


def test_a_block_in_a_pipe(tmp_path):
    folder = written_run(tmp_path / "first", ledger=LEDGER, log=LOG)
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 12\n\x00\x01\n')
    time_line = {"kind": "time", "from": 1, "to": 101, "seconds": SPEND, "step": 9, "attempt": "a"}
    (folder / "events.jsonl").write_text(json.dumps(time_line) + "\n")
    before = files_of(folder)
    done = vtx("watch", folder)
    assert done.returncode == 0 and not done.stderr, done.stderr
    for words in (
        "first",
        "stopped",
        "step 120 of 200  60.0 %",
        "MFU",
        "data wait",
        "1 slot masked  (jpeg_corrupt 1)",
        "1 step skipped",
        "1 save failed",
        "a worker ended with signal 9, on from step 80",
        "80.0 %",
        "start 10.0 %",
        "2 lines of metrics.jsonl cannot be read",
        "step 120/200  loss 0.9",
    ):
        assert words in done.stdout, f"{words}\n{done.stdout}"
    assert re.search(f"[{BARS}]{{20,}}", done.stdout) and "\x1b" not in done.stdout
    assert "\u202e" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert files_of(folder) == before, "it has written in the run folder"
    ascii_only = vtx("watch", folder, env={"PYTHONIOENCODING": "ascii:backslashreplace"})
    assert ascii_only.returncode == 0 and not re.search(f"[{BARS}]", ascii_only.stdout)


def test_refusals(tmp_path):
    done = vtx("watch", tmp_path / "nothing")
    assert done.returncode == 2 and "is no run folder yet" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    done = vtx("watch", tmp_path, "--every", "0")
    assert done.returncode == 2 and "--every" in done.stderr
    assert not list(tmp_path.iterdir())


class Terminal:
    """`vtx watch` in a pseudo-terminal."""

    def __init__(self, folder, columns=90, rows=32, every=0.2):
        self.text = ""
        self.pid, self.fd = pty.fork()
        if not self.pid:
            words = ["-m", "vtx_scale.launch.cli", "watch", str(folder), "--every", str(every)]
            env = environment({"TERM": "xterm-256color"})
            os.execve(sys.executable, [sys.executable, *words], env)
        size = struct.pack("HHHH", rows, columns, 0, 0)
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, size)

    def until(self, words, seconds=60.0):
        """Read until these are there."""
        deadline, start = time.monotonic() + seconds, len(self.text)
        while words not in self.text[start:]:
            assert time.monotonic() < deadline, f"{words!r} is not in {self.text[-3000:]}"
            if not self.read():
                break
        assert words in self.text[start:], self.text[-3000:]

    def read(self):
        if not select.select([self.fd], [], [], 0.2)[0]:
            return True
        try:
            body = os.read(self.fd, 1 << 16)
        except OSError:  # it has ended
            return False
        self.text += body.decode(errors="replace")
        return bool(body)

    def end(self, number=None):
        if number is not None:
            os.kill(self.pid, number)
        deadline = time.monotonic() + 60
        while self.read() and time.monotonic() < deadline:
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@contextlib.contextmanager
def terminal(folder, **options):
    shown = Terminal(folder, **options)
    try:
        yield shown
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(shown.pid, signal.SIGKILL)
            os.waitpid(shown.pid, 0)
        os.close(shown.fd)


def test_live_in_a_terminal(tmp_path):
    """A run that begins, lives, is restarted from a checkpoint; Ctrl-C ends it with 0."""
    folder = tmp_path / "run"
    with terminal(folder) as shown:
        shown.until("has not begun")
        written_run(folder, log=LOG[:1])
        body = {"who": "process 7 on there", "state": "held", "beat": 0}
        storage = Folder(folder / "lease")
        storage.put(lease.name_of(1), json.dumps(body).encode())
        shown.until("its next beat shows if it lives")
        storage.put(lease.name_of(1), json.dumps({**body, "beat": 1}).encode())
        shown.until("running")
        with (folder / "metrics.jsonl").open("ab") as file:
            file.write(row(121))
        shown.until("step \x1b[0m\x1b[1m121\x1b[0m of 200")
        os.truncate(folder / "metrics.jsonl", len(b"".join(row(s + 1) for s in range(80))))
        shown.until("step \x1b[0m\x1b[1m80\x1b[0m of 200")
        before = files_of(folder)
        os.write(shown.fd, b"\x03")
        assert shown.end() == 0
        assert "Traceback" not in shown.text and files_of(folder) == before
        assert shown.text.endswith("\r\n") and "\x1b[?1049l" in shown.text, (
            "the screen is given back"
        )


def test_a_finished_run_ends_it(tmp_path):
    folder = written_run(tmp_path / "run", steps=200)
    manifest = folder / "checkpoints" / "step-00000200" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{}")
    with terminal(folder, columns=44, rows=14) as shown:
        assert shown.end() == 0 and "finished" in shown.text


def test_a_bucket_that_does_not_answer(tmp_path, monkeypatch):
    """It says so, keeps what it has, and asks again."""
    folder, down = written_run(tmp_path / "run"), [False]
    plain = RunReader.look

    def look(self):
        if down[0]:
            raise TimeoutError(110, "no answer", "s3://b/run")
        return plain(self)

    monkeypatch.setattr(RunReader, "look", look)
    looks = watch.Looks(folder, 0.01)

    def wait(words):
        deadline = time.monotonic() + 30
        while words not in looks.note() if words else looks.note():
            assert time.monotonic() < deadline, looks.note()
            time.sleep(0.01)

    try:
        assert looks.looked.wait(30) and looks.summary.step == 120
        down[0] = True
        wait("no answer): asking again; below is what it was")
        assert looks.summary.step == 120
        with (folder / "metrics.jsonl").open("ab") as file:
            file.write(row(121))
        down[0] = False
        wait("")
        assert looks.summary.step == 121
        looks.asked = time.monotonic()
        looks.answered = looks.asked - 60
    finally:
        looks.ended.set()


@pytest.mark.parametrize("width", [20, 30, 44, 60, 80, 120, 300])
def test_every_line_has_room(width):
    columns, records = Columns(), Records()
    for step in range(1, 400):
        columns.add(json.loads(row(step)))
    add_ledger(records, [json.dumps(entry).encode() for entry in LEDGER])
    records.news = ["2026-01-01 00:00:00 " + "x" * 300]
    records.ranks, records.nodes = 16, ["a", "b"]
    summary = Summary(
        "s3://bucket/a/very/long/name/of/a/run/" + "r" * 80,
        {"recipe": {"system": {"world": 16}}},
        steps=10**6,
        columns=columns,
        records=records,
        checkpoints=[40],
        holder=Holder("process 1 on there", 2, False, 3.0, 9.0),
        goodput=Goodput(SPEND, 100.0, 0.8),
    )
    text = shown_at(width, summary, note="s3://bucket does not answer")
    assert max(map(len, text.splitlines())) <= width
    assert "16 ranks on 2 nodes" in " ".join(text.split()) or width < 44


def test_a_wait_for_machines_is_shown_and_no_time_is_left_in_it():
    columns, records, at = Columns(), Records(), b"2026-01-01 00:00:00 "
    for step in range(1, 400):
        columns.add(json.loads(row(step)))
    holder = Holder("process 1 on there", 2, False, 3.0, 9.0)
    summary = Summary("run", {}, steps=900, columns=columns, records=records, holder=holder)
    wait = "waiting for machines: 1 of 2 slots"
    add_log(records, [at + b"step 399/900  loss 1"])
    assert " left" in shown_at(100, summary) and wait not in shown_at(100, summary)
    for after in (b"starting the workers", b"resumed at step 300 of 900", b"step 301/900  loss 1"):
        add_log(records, [at + b"n1 has lost it: starting again from step 300", at + wait.encode()])
        records.news.clear()
        text = shown_at(100, summary)
        assert wait in text and "◐ waits" in text and " left" not in text, text
        add_log(records, [at + after])
        assert " left" in shown_at(100, summary) and "● running" in shown_at(100, summary)
    add_log(records, [at + wait.encode()])
    records.news.clear()
    summary.holder = Holder("process 1 on there", 2, True)
    assert wait not in shown_at(100, summary), "nobody waits any more"


def test_an_empty_summary_is_drawn():
    assert "has not begun" in shown_at(80, Summary("run"))
    assert "unknown" in shown_at(80, Summary("run", {"recipe": {}}, steps=10))


def test_sparkline_and_words():
    columns = Columns()
    for step in range(64):
        columns.add({"step": step, "x": step, "flat": 1.0, "none": None})
    assert sparkline(columns, "x", 8, BARS) == BARS
    assert sparkline(columns, "flat", 4, PLAIN_BARS) == "...." and not sparkline(
        columns, "none", 8, BARS
    )
    assert [duration(s) for s in (0, 59.6, 61, 725, 3600, 18_720, 273_600)] == [
        "0 s",
        "1 min",
        "1 min 1 s",
        "12 min",
        "1 h",
        "5 h 12 min",
        "3 d 4 h",
    ]
    shares = causes(SPEND)
    assert shares[0] == ("step", 0.8) and sum(s for _, s in shares) == pytest.approx(1)
    assert ("start", 0.1) in shares


def documented(folder):
    """A run of four ranks that lost a machine, as docs/watching.md shows it."""
    log = (
        "4 ranks on 2 nodes: a100-3, a100-7",
        "step 1180/2000 loss 0.3021 lr 4.0e-04 norm 1.31 524/s ep 3.02 9.1G ETA 0:25",
        "resumed at step 1100 of 2000",
        "4 ranks on 2 nodes: a100-3, a100-9",
        "step 1236/2000 loss 0.2877 lr 3.6e-04 norm 1.28 531/s ep 3.16 9.1G ETA 0:23",
    )
    ledger = (
        {"kind": "restart", "reason": "a100-7 is gone", "step": 1100, "time": 1.7e9},
        *({"kind": "sample", "reason": "jpeg_corrupt", "step": s} for s in range(0, 70, 10)),
        {"kind": "sample", "reason": "caption_missing", "step": 3},
        {"kind": "skip", "reason": "spike", "step": 801},
    )
    scores = ({"step": 1000, "name": "zero_shot", "top1": 0.4123, "top5": 0.7011},)
    system = {"world": 4, "strategy": "fsdp"}
    written_run(folder, 1250, ledger=ledger, scores=scores, recipe=recipe(2000, system=system))
    lines = [f"2026-03-04 11:{k:02d}:07 {line}\n" for k, line in enumerate(log)]
    (folder / "log.txt").write_text("".join(lines))
    spend = {"start.import": 9.0, "start.load": 3.0, "step": 240.0, "data_wait": 6.0}
    spend |= {"save_stall": 2.0, "lost": 12.0, "detect": 4.0, "down": 9.0}
    event = {"kind": "time", "from": 0, "to": 285, "seconds": spend, "step": 1250, "attempt": "a"}
    (folder / "events.jsonl").write_text(json.dumps(event) + "\n")
    for step in (1100, 1200):
        at = folder / "checkpoints" / f"step-{step:08d}"
        at.mkdir(parents=True)
        (at / "manifest.json").write_text("{}")
    body = {"who": "process 4711 on head", "state": "held", "beat": 41}
    Folder(folder / "lease").put(lease.name_of(2), json.dumps(body).encode())


def test_the_docs_show_what_it_prints(tmp_path):
    documented(tmp_path / "runs" / "first")
    done = vtx("watch", "runs/first", cwd=tmp_path)
    found = "\n".join(line.rstrip() for line in done.stdout.splitlines())
    page = (Path(__file__).parents[2] / "docs" / "watching.md").read_text()
    shown = re.search(r"\$ vtx watch runs/first\n(.*?)\n```", page, re.S)
    assert shown and shown[1].strip() == found.strip(), found
