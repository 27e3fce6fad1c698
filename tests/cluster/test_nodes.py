"""The machines of tests/nodes.py are apart, and nothing of them stays."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.bed import listens, until
from tests.nodes import HOME, ROOT, nodes
from tests.require import need

pytestmark = [pytest.mark.services, pytest.mark.slow]
GET = "import socket, sys; socket.create_connection((sys.argv[1], 80), 1)"


@pytest.fixture(scope="module")
def machines():
    need("nodes")
    with nodes(2) as found:
        yield found


def test_they_share_nothing_that_can_be_written(machines):
    for where in ("/tmp", "/dev/shm", "/var/tmp"):
        assert machines.run(0, "touch", f"{where}/mine").returncode == 0
        found = machines.run(1, "ls", where).stdout.split()
        kept = [p for p in (ROOT, Path(sys.prefix)) if p.is_relative_to(where)]
        inside = {p.relative_to(where).parts[0] for p in kept}
        assert set(found) == inside | ({"home"} if where == "/tmp" else set())
        assert not Path(where, "mine").exists()
    assert machines.run(0, "touch", "mine").returncode == 0
    assert "mine" in machines.run(0, "ls", HOME).stdout.split() and not Path(HOME, "mine").exists()
    for where in (ROOT, sys.prefix):
        assert "Read-only" in machines.run(0, "touch", f"{where}/mine").stderr
    assert machines.run(0, "hostname").stdout == "n0\n"
    env = machines.run(0, "env").stdout
    assert f"HOME={HOME}\n" in env and os.environ["XDG_CACHE_HOME"] not in env
    one = machines.start(0, Path(os.devnull), "sleep", "50")
    until(lambda: machines.processes(0, "sleep 50"), 20, "a process there")
    assert len(machines.processes(0, "sleep 50")) == 1 and not machines.processes(1)
    assert "sleep 50" not in machines.run(1, "ps", "-ef").stdout
    one.kill()


def test_they_meet_on_the_network_alone_and_can_be_cut_off(machines, tmp_path):
    machines.start(1, tmp_path / "log", sys.executable, "-m", "http.server", "80")
    until(lambda: listens(machines.address(1), 80), 20, "a server")
    assert machines.run(0, sys.executable, "-c", GET, "n1").returncode == 0
    assert "refused" in machines.run(0, sys.executable, "-c", GET, "n0").stderr
    machines.cut(1)
    assert "timed out" in machines.run(0, sys.executable, "-c", GET, "n1").stderr
    machines.heal(1)
    assert machines.run(0, sys.executable, "-c", GET, "n1").returncode == 0
    machines.crash(1)
    assert "refused" in machines.run(0, sys.executable, "-c", GET, "n1").stderr
    machines.up(1)
    machines.power_cut(1)
    said = machines.run(0, sys.executable, "-c", GET, "n1").stderr
    assert "timed out" in said or "No route" in said
    machines.up(1)
    assert machines.processes(1) == {}


def test_nothing_stays_where_the_tests_are_killed(tmp_path):
    need("nodes")
    body = (
        "import os, pathlib, time\n"
        "from tests.nodes import nodes\n"
        "with nodes(2) as m:\n"
        "    m.start(1, pathlib.Path(os.devnull), 'sleep', '77777')\n"
        "    while not m.processes(1, 'sleep 77777'): time.sleep(0.05)\n"
        "    first = [number for _, number in m.first.values()]\n"
        "    print(m.link, *m.processes(1), m.holder, *first, flush=True)\n"
        "    time.sleep(60)\n"
    )
    tests = subprocess.Popen(
        [sys.executable, "-c", body], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    link, *pids = tests.stdout.readline().split()
    assert Path("/sys/class/net", link).exists() and len(pids) == 4
    os.kill(tests.pid, signal.SIGKILL)
    tests.wait()
    time.sleep(0.1)
    until(lambda: not any(Path("/proc", p).exists() for p in pids), 10, "the machines' end")
    until(lambda: not Path("/sys/class/net", link).exists(), 10, "the network's end")
