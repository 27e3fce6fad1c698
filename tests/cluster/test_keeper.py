"""What keeps a machine's ranks, without Ray: who ends when whom nobody asks after."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.cluster.sleepers import TTL
from tests.survivors import mentioning
from vtx_scale.cluster.keeper import Keeper, interface_of, unfit

ROOT = Path(__file__).parents[2]


def kept(tmp_path: Path, seconds: float) -> subprocess.Popen[str]:
    arguments = (f"mark-{tmp_path}", str(tmp_path), seconds)
    return subprocess.Popen(
        [sys.executable, "-c", f"from tests.cluster.sleepers import keep; keep(*{arguments})"],
        # it leaves the folder that it was started in
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        text=True,
        stdout=subprocess.PIPE,
    )


def test_ranks_that_nobody_asks_after_end_with_their_keeper(tmp_path):
    keeper = kept(tmp_path, 2 * TTL)
    try:
        assert keeper.stdout.readline() == "polled\n"
        began = time.monotonic()
        while keeper.poll() is None and time.monotonic() < began + 3 * TTL + 20:
            time.sleep(0.1)
        assert keeper.poll() == 1
        # asked after for longer than its limit, it went on
        assert time.monotonic() - began > 2 * TTL
    finally:
        keeper.kill()
        keeper.wait()
    assert not mentioning(f"sleep({keeper.pid})")
    assert list(tmp_path.iterdir()) == [], "what it had on this machine is removed"


def test_ranks_die_with_their_keeper(tmp_path):
    keeper = kept(tmp_path, 600)
    assert keeper.stdout.readline() == "polled\n"
    assert keeper.stdout.readline() == "polled\n"
    assert len(mentioning(f"sleep({keeper.pid})")) == 2
    os.kill(keeper.pid, signal.SIGKILL)
    keeper.wait()
    until = time.monotonic() + 20
    while mentioning(f"sleep({keeper.pid})") and time.monotonic() < until:
        time.sleep(0.1)
    assert not mentioning(f"sleep({keeper.pid})")


def test_what_one_machine_sends_arrives_at_the_next(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # and back from where a keeper goes
    ever = float("inf")
    sender, receiver = (Keeper(None, {}, "127.0.0.1", ever, str(tmp_path)) for _ in range(2))
    assert sender.send("127.0.0.1", receiver.receive()) > 1e6
    port = receiver.receive()
    assert sender.send("127.0.0.1", port) > 0 and sender.send("127.0.0.1", port) == 0


def test_the_interface_of_an_address():
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.7") == "" and interface_of("::1") == ""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            s.connect(("198.51.100.1", 9))  # sends nothing: it only chooses an interface
        except OSError:
            return  # this machine has the loopback alone
        assert interface_of(s.getsockname()[0]) not in ("", "lo")


def test_an_unfit_machine_is_known(tmp_path, monkeypatch):
    assert unfit(tmp_path) == ""
    assert "cannot write to" in unfit(tmp_path / "nowhere")
    monkeypatch.setattr("vtx_scale.cluster.keeper.LEAST_FREE", 1.0)
    assert "of memory left" in unfit(tmp_path)
