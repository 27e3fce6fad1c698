"""The line of a step: epoch, memory, what is left, and never more than 80 columns."""

import contextlib
import fcntl
import math
import os
import re
import struct
import subprocess
import sys
import termios

import pytest

from tests.runs import COLOUR, environment, log_of, train
from vtx_scale.data_pipeline.system import peak_memory
from vtx_scale.trainer.step_line import Pace, duration, short_count, step_line

VALUES = {"loss": 0.30213, "lr": 4.02e-4, "grad_norm": 1.3104, "samples_per_second": 524.2}
ALL = {"epoch": 1.234, "memory": 3 * 2**30 + 1, "left": 125.0}
LINE = re.compile(
    r"step (\d+)/12  loss \d+\.\d{4}  lr \d\.\de[-+]\d\d  norm [\d.e+-]+  [\d.]+k?/s"
    r"  ep (\d+\.\d\d)  (\d+\.\d)G(?:  ETA (\d+:\d\d))?$"
)


def test_a_line_says_how_far_how_large_and_how_long():
    assert step_line(VALUES, start="step 80/200", epoch=1.234, memory=2**30, left=5) == (
        "step 80/200  loss 0.3021  lr 4.0e-04  norm 1.31  524/s  ep 1.23  1.0G  ETA 0:05"
    )
    assert step_line(VALUES) == "loss 0.3021  lr 4.0e-04  norm 1.31  524/s"
    nothing = VALUES | {"loss": math.nan, "samples_per_second": 0.0}
    assert step_line(nothing, start="step 8/9", **ALL) == (
        "step 8/9  no valid sample  ep 1.23  3.0G  ETA 2:05"
    )


def test_a_line_that_would_be_too_wide_is_closer_and_then_shorter():
    line = step_line(VALUES, start="step 1180/20000", **ALL)
    assert line == ("step 1180/20000 loss 0.3021 lr 4.0e-04 norm 1.31 524/s ep 1.23 3.0G ETA 2:05")
    wide = VALUES | {"samples_per_second": 1_234_567.0, "grad_norm": 1.234e-05, "loss": 12345.6}
    for start in ("step 123456/1234567", "step 1234567/1234567", "step 8/9"):
        line = step_line(wide, start=start, epoch=123.45, memory=2**37, left=9e5)
        assert len(line) <= 80 and "lr" not in line
        assert all(word in line for word in ("loss 12345.6", "ep 123.45", "128.0G", "ETA 10d10h"))
    assert step_line(VALUES, **ALL, width=30) == "loss 0.3021 524/s ETA 2:05"


def test_the_time_that_is_left_is_that_of_the_newest_steps():
    pace = Pace(1000)
    assert pace.left(101, now=60.0) is None  # of the first step of a start nothing is known
    assert pace.left(102, now=62.0) == 2 * 898
    for step in range(103, 303):
        left = pace.left(step, now=62.0 + (step - 102) * 0.5)
    assert left == pytest.approx(0.5 * (1000 - 302))  # as the newest ones took, not the first
    assert pace.left(1000, now=1e3) == 0


@pytest.mark.parametrize(
    "seconds,says",
    [(0.4, "0:00"), (59.6, "1:00"), (3599.6, "1:00:00"), (11_045, "3:04:05"), (360_000, "4d04h")],
)
def test_durations(seconds, says):
    assert duration(seconds) == says


def test_counts():
    says = ["0.0", "4.7", "10", "524", "9999", "10.0k"]
    assert [short_count(v) for v in (0, 4.72, 9.97, 524.2, 9_999.4, 9_999.6)] == says


def test_the_peak_is_of_this_process():
    code = (
        "from vtx_scale.data_pipeline.system import peak_memory as p; a = p(); x = b'1' * (1 << 26)"
        "; del x; b = p(); y = b'1' * (1 << 20); print(a, b, p())"
    )
    done = subprocess.check_output([sys.executable, "-c", code], text=True)
    before, peak, after = map(int, done.split())
    assert 1 << 22 < before < peak - (1 << 25) and peak <= after < peak + (1 << 22)
    assert peak_memory() > 1 << 22


@pytest.mark.slow
def test_lines_of_a_run_and_of_one_that_goes_on(tmp_path):
    train(tmp_path, "steps=12", "system.leave_after=7", code=75)
    train(tmp_path, "steps=12")
    found = [LINE.search(line) for line in log_of(tmp_path).splitlines() if "  loss " in line]
    assert [m[1] for m in found] == ["1", "8", "12"]  # the first of a start, and the last
    # 16 of 256 samples a step
    assert [float(m[2]) for m in found] == [0.06, 0.5, 0.75]
    assert all(0.05 < float(m[3]) < 16 for m in found)
    assert [m[4] for m in found] == [None, None, "0:00"]
    assert all(len(m[0]) <= 80 for m in found)


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 140])
def test_on_a_terminal_the_live_line_has_them_all(tmp_path, columns):
    import pty

    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    command = [sys.executable, "-m", "vtx_scale.launch.cli", "train", COLOUR, "--smoke", "--run"]
    keys = [str(tmp_path / "run"), "system.workers=0", "steps=12"]
    env = environment({"TERM": "xterm", "COLUMNS": str(columns)})
    process = subprocess.Popen([*command, *keys], env=env, stderr=child, stdout=child)
    os.close(child)
    heard = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while part := os.read(parent, 65536):
            heard += part
    os.close(parent)
    assert process.wait(60) == 0
    plain = re.sub(r"\x1b\[[\d;]*m", "", heard.decode())  # colours
    plain = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "\r", plain)
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", plain) if line.startswith("step 12/12")]
    assert lines and all(len(line) <= columns for line in lines)
    for word in ("loss ", "lr ", "norm ", "/s", "ep ", "G ", "ETA 0:00"):
        assert word in lines[-1], lines[-1]
    assert ("━━━━━" in lines[-1]) == (columns > 100)
