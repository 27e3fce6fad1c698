"""Ranks that are forked from the warm server of a machine."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.runs import train, vtx
from tests.survivors import mentioning
from vtx_scale.launch import fork_ranks
from vtx_scale.launch.node import Node, Round
from vtx_scale.launch.warm import lives

PROBE = Path(__file__).parent


def request_in(folder: Path, spare: str = "auto") -> Path:
    """Of ranks whose recipe is `probe.py`."""
    recipe = {"spec": "probe:Nothing", "system": {"spare": spare}}
    body = {"recipe": recipe, "folder": str(folder), "debug": False, "epoch": 0}
    request = folder / "request.json"
    request.write_text(json.dumps({**body, "paths": [str(PROBE)]}))
    return request


@contextmanager
def node_in(folder: Path, spare: str = "auto", **environment: str):
    """A node whose processes can be found by `folder` in their environment."""
    environment |= {"PROBE": str(folder)}
    with closing(Node(request_in(folder, spare), environment)) as node:
        yield node
    assert not [p for p in mentioning(str(folder)) if p[0] != os.getpid()]


def round_of(number: int, ranks: int = 2) -> Round:
    return Round(number, ranks, 0, ranks, 0, "file:///nowhere")


def begun(node: Node, folder: Path, then: str, number: int = 1, ranks: int = 2) -> None:
    for rank in range(ranks):
        (folder / str(rank)).unlink(missing_ok=True)
    node.environment["PROBE_THEN"] = then
    node.begin(round_of(number, ranks))


def told(node: Node, folder: Path, ranks: int = 2) -> list[dict]:
    """What ranks saw, as soon as all have written it down."""
    files = [folder / str(rank) for rank in range(ranks)]
    wait(lambda: all(f.exists() for f in files))
    return [json.loads(f.read_text()) for f in files]


def codes(node: Node) -> dict[int, int | None]:
    """When all have ended."""
    wait(lambda: None not in node.codes().values())
    return node.codes()


def wait(until, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One server for what leaves it alive."""
    folder = tmp_path_factory.mktemp("node")
    with node_in(folder) as node:
        yield node, folder


def test_a_rank_is_as_one_that_is_a_new_python(shared, tmp_path):
    """Environment, arguments, signals, descriptors, threads: the same as with system.spare=0; what
    ranks draw is not.
    """
    node, folder = shared
    begun(node, folder, "7")
    asked = time.time()
    forked = told(node, folder)
    assert codes(node) == {0: 7, 1: 7}
    for rank, one in enumerate(forked):  # also while the server imported
        assert one["age"] + 0.1 > (folder / str(rank)).stat().st_mtime - asked
    server = node.warm.process.pid
    with closing(Node(request_in(tmp_path, "0"), {"PROBE": str(tmp_path)})) as cold:
        cold.environment["PROBE_THEN"] = "7"
        cold.begin(replace(round_of(1), ranks=1))  # the first of two
        (new,) = told(cold, tmp_path, ranks=1)
        assert codes(cold) == {0: 7} and cold.warm is None
    same = new["seen"]
    same["environment"] |= {"PROBE": str(folder), "LOCAL_WORLD_SIZE": "2"}
    same["argv"][1] = str(node.request)
    assert forked[0]["seen"] == same
    assert new["parent"] == os.getpid()
    for one in forked:
        assert one["parent"] == one["said parent"] == server
        assert one["dies by"] == signal.SIGKILL
    for name in forked[0]["drawn"]:
        assert forked[0]["drawn"][name] != forked[1]["drawn"][name], name


def test_one_import_for_all_rounds(shared):
    """And codes and times are those of its own round."""
    node, folder = shared
    begun(node, folder, "0")
    codes(node)
    server, found = node.warm and node.warm.process.pid, set()
    for number, (then, code) in enumerate([("3", 3), ("raise", 5), ("0", 0), ("sleep", None)], 1):
        asked = time.monotonic()
        begun(node, folder, then, number)
        seen = told(node, folder)
        assert all(0 <= s["age"] < time.monotonic() - asked for s in seen)
        assert {s["seen"]["environment"]["VTX_ROUND"] for s in seen} == {str(number)}
        found |= {s["pid"] for s in seen}
        if code is None:
            assert node.codes() == {0: None, 1: None}
            os.kill(seen[1]["pid"], signal.SIGKILL)
            wait(lambda: node.codes()[1] is not None)
            assert node.codes() == {0: None, 1: -signal.SIGKILL}
        else:
            assert codes(node) == {0: code, 1: code}
    assert len(found) == 8
    assert server in (None, node.warm.process.pid)
    node.end()
    assert not any(map(lives, found))


def test_a_signal_reaches_ranks_alone(shared):
    node, folder = shared
    begun(node, folder, "sleep")
    told(node, folder)
    node.ask()
    assert codes(node) == {0: -signal.SIGTERM, 1: -signal.SIGTERM}
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        os.kill(node.warm.process.pid, number)
    begun(node, folder, "0")
    assert codes(node) == {0: 0, 1: 0}


def test_a_thread_that_began_ranks_may_end(shared):
    node, folder = shared
    thread = threading.Thread(target=begun, args=(node, folder, "sleep"))
    thread.start()
    thread.join()
    told(node, folder)
    time.sleep(0.2)
    assert node.codes() == {0: None, 1: None}
    node.end()


def test_asked_before_it_is_ready(tmp_path):
    """A rank that has not begun has ended by the signal: nobody waits for an import."""
    with node_in(tmp_path) as node:
        begun(node, tmp_path, "sleep")
        node.ask()
        assert node.codes() == {0: -signal.SIGTERM, 1: -signal.SIGTERM}
        assert not (tmp_path / "0").exists()


def test_a_server_that_dies_takes_its_ranks_along_and_another_is_started(tmp_path):
    with node_in(tmp_path) as node:
        begun(node, tmp_path, "sleep")
        pids = [s["pid"] for s in told(node, tmp_path)]
        os.kill(node.warm.process.pid, signal.SIGKILL)
        assert codes(node) == {0: -signal.SIGKILL, 1: -signal.SIGKILL}
        assert not any(map(lives, pids))
        begun(node, tmp_path, "4", 2)
        assert codes(node) == {0: 4, 1: 4}


def test_nothing_is_forked_where_there_are_threads(tmp_path, capfd):
    """A library of the user's may start one: ranks are new Pythons then."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, threading, time\n"
        "if 'fork_ranks' in ' '.join(sys.orig_argv):\n"
        "    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with node_in(tmp_path, PYTHONPATH=path) as node:
        begun(node, tmp_path, "6", ranks=1)
        assert codes(node) == {0: 6}
        (seen,) = told(node, tmp_path, ranks=1)
        assert seen["parent"] == os.getpid()
        assert node.warm is None and not node.forks
    assert capfd.readouterr().err.count("each starts as a new Python") == 1


def test_what_may_not_be_forked(monkeypatch):
    # those that other tests have left here are none of it
    monkeypatch.setattr(fork_ranks.threading, "active_count", lambda: 1)
    monkeypatch.setattr(fork_ranks.threading, "enumerate", lambda: [threading.main_thread()])
    monkeypatch.setattr(fork_ranks.os, "listdir", lambda path: ["1"])
    assert fork_ranks.unfit() == ""
    monkeypatch.setattr(fork_ranks.os, "listdir", lambda path: ["1", "2"])
    assert "threads (of a library)" in fork_ranks.unfit()
    monkeypatch.setattr(fork_ranks.os, "listdir", lambda path: ["1"])
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert "device" in fork_ranks.unfit()


def test_a_refusal_leaves_nobody_behind(tmp_path):
    """The server is started before the data is looked at."""
    words = ["train", "clip_vit_b32", "--smoke", "--run", tmp_path / "run", "system.world=2"]
    done = vtx(*words, f"data.shards={tmp_path}", env={"TEST_MARK": str(tmp_path)})
    assert done.returncode == 2 and str(tmp_path) in done.stderr, done.stderr
    assert mentioning(str(tmp_path)) == []


def test_nobody_outlives_the_launcher(tmp_path):
    """Ranks that hang, and their server, 5 s after SIGKILL of the launcher."""
    code = (
        "import sys, time; from pathlib import Path\n"
        "from tests.surfaces.test_warm import *\n"
        "folder = Path(sys.argv[1]); node = Node(request_in(folder), {'PROBE': str(folder)})\n"
        "begun(node, folder, 'sleep'); time.sleep(600)"
    )
    launcher = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    seen = told(None, tmp_path)
    os.kill(seen[0]["pid"], signal.SIGSTOP)
    assert len(mentioning(str(tmp_path))) == 4
    launcher.kill()
    launcher.wait()
    wait(lambda: not mentioning(str(tmp_path)), 5)


@pytest.mark.slow
@pytest.mark.parametrize("spare", ["auto", "0"])
def test_a_run_leaves_nothing_in_the_temporary_folder(tmp_path, spare):
    """Ranks end at once, without the end of Python that clears up behind multiprocessing."""
    (tmp_path / "tmp").mkdir()
    keys = ("system.world=2", "system.workers=1", "steps=2", f"system.spare={spare}")
    train(tmp_path / "run", *keys, env={"TMPDIR": str(tmp_path / "tmp")})
    left = [p.name for p in (tmp_path / "tmp").iterdir()]
    assert not [name for name in left if not name.startswith("torchinductor_")]  # torch's own
