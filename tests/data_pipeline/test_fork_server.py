"""The fork server of loader workers, forked from a process that has imported everything."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import forkserver
from pathlib import Path

from tests.survivors import mentioning
from vtx_scale.data_pipeline import fork_server
from vtx_scale.trainer.leave import requests

PROGRAM = """
import fcntl, json, multiprocessing, os, signal, sys, time
import torch
from multiprocessing import forkserver
from vtx_scale.data_pipeline import fork_server
from vtx_scale.data_pipeline.loader import start_worker

def about(pid, pipe):
    import torch
    start_worker()
    both = (signal.SIGTERM, signal.SIGINT)
    kept = [n.name for n in both if signal.getsignal(n) != signal.SIG_IGN]
    pipe.send({"parent": os.getppid(), "imported": "vtx_scale.data_pipeline.loader" in sys.modules,
               "threads": torch.get_num_threads(), "kept": kept})
    pipe.recv()

def worker():
    mine, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("forkserver").Process(
        target=about, args=(os.getpid(), theirs), daemon=True)
    process.start()
    return process, mine

if __name__ == "__main__":
    held = open(sys.argv[1], "a")
    fcntl.flock(held, fcntl.LOCK_EX)
    begun = fork_server.begin()
    again = fork_server.begin()
    fork_server.preload("vtx_scale.data_pipeline.loader")
    server = forkserver._forkserver._forkserver_pid
    process, pipe = worker()
    first = pipe.recv()
    held.close()
    print(json.dumps({"begun": begun, "again": again, "server": server, **first}), flush=True)
    if sys.argv[2] == "server dies":
        os.kill(server, signal.SIGKILL)
        process.join(60)
        print(json.dumps({"code": process.exitcode}), flush=True)
        fork_server.preload("vtx_scale.data_pipeline.loader")
        process, pipe = worker()
        server = forkserver._forkserver._forkserver_pid
        print(json.dumps({**pipe.recv(), "server": server}), flush=True)
    time.sleep(600)
"""


SPEAKING = """
import multiprocessing, sys
from vtx_scale.data_pipeline import fork_server

def speak():
    print("heard", file=sys.stderr, flush=True)

if __name__ == "__main__":
    sys.stderr = open(sys.argv[1], "w")
    assert fork_server.begin()
    process = multiprocessing.get_context("forkserver").Process(target=speak)
    process.start()
    process.join(60)
    sys.exit(process.exitcode)
"""


def test_a_worker_of_who_has_a_stderr_of_its_own_is_heard(tmp_path):
    """As a notebook and a test have: the worker's goes to the descriptor that all share."""
    program = tmp_path / "program.py"
    program.write_text(SPEAKING)
    words = [sys.executable, str(program), str(tmp_path / "own")]
    done = subprocess.run(words, text=True, stderr=subprocess.PIPE, timeout=60)
    assert done.returncode == 0 and done.stderr == "heard\n"


def started(folder: Path, how: str = "") -> subprocess.Popen:
    program = folder / "program.py"
    program.write_text(PROGRAM)
    return subprocess.Popen(
        [sys.executable, str(program), str(folder / "lock"), how],
        text=True,
        stdout=subprocess.PIPE,
        env={**os.environ, "TEST_MARK": str(folder)},
    )


def test_workers_are_forked_from_this_process_and_end_with_it(tmp_path):
    """The server is a fork, holds no lock of its parent, and goes with it; so do workers."""
    process = started(tmp_path)
    about = json.loads(process.stdout.readline())
    assert about["begun"] and not about["again"]
    assert about["parent"] == about["server"] and about["imported"]
    assert about["threads"] == 1
    assert about["kept"] == [], "a signal that its trainer answers"
    command = Path(f"/proc/{about['server']}/cmdline").read_text()
    assert command == Path(f"/proc/{process.pid}/cmdline").read_text(), "a new Python"
    assert subprocess.run(["flock", "-n", str(tmp_path / "lock"), "true"]).returncode == 0
    process.kill()
    process.wait()
    until = time.monotonic() + 5
    while left := mentioning(str(tmp_path)):
        assert time.monotonic() < until, left
        time.sleep(0.05)


def test_another_is_started_where_it_dies(tmp_path):
    """As multiprocessing does: a new Python, which imports what it was asked to."""
    process = started(tmp_path, "server dies")
    try:
        first, ended, second = (json.loads(process.stdout.readline()) for _ in range(3))
        assert ended["code"] == 255
        assert second["parent"] == second["server"] != first["server"] and second["imported"]
        assert b"forkserver" in Path(f"/proc/{second['server']}/cmdline").read_bytes()
    finally:
        process.kill()
        process.wait()


def test_what_is_private_to_multiprocessing_is_as_this_python_has_it():
    assert fork_server.private() is forkserver._forkserver


def test_where_it_is_otherwise_multiprocessing_starts_its_own(monkeypatch):
    def main(listener_fd, alive_r, preload, main_path=None, sys_path=None, *, authkey_r=None):
        """Of a Python whose server proves who it is."""

    with monkeypatch.context() as another:
        another.setattr(forkserver, "main", main)
        assert fork_server.private() is None and not fork_server.begin()
    monkeypatch.delattr(forkserver, "_forkserver")
    assert fork_server.private() is None and not fork_server.begin()


def test_a_process_with_threads_is_not_forked(monkeypatch):
    monkeypatch.setattr(forkserver._forkserver, "_forkserver_pid", None)
    monkeypatch.setattr(os, "fork", lambda: os.kill(os.getpid(), signal.SIGABRT))
    release = threading.Event()
    thread = threading.Thread(target=release.wait)
    thread.start()
    try:
        assert not fork_server.begin()
    finally:
        release.set()
        thread.join()


def test_whoever_listens_for_requests_rests_for_a_fork():
    """Nothing that arrives meanwhile is lost."""
    threads = threading.active_count()
    with requests.listen():
        assert threading.active_count() == threads + 1
        with requests.without_thread():
            assert threading.active_count() == threads
            requests.announces = False
            os.kill(os.getpid(), signal.SIGUSR1)
        until = time.monotonic() + 20
        while not requests.count and time.monotonic() < until:
            time.sleep(0.01)
        assert requests.count == 1 and requests.last == signal.SIGUSR1
