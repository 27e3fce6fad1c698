"""What torchrun leaves open over several machines: a name for each start, an agent that waits."""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed import TCPStore

from tests.s3 import end_with_parent
from vtx_scale.launch.torchrun import round_name

WORLD = 3


@pytest.fixture(scope="module")
def stores():
    """The one store of all agents, as each rank sees it; it outlives every start."""
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    limit = timedelta(seconds=20)
    return [TCPStore("127.0.0.1", server.port, None, False, limit) for _ in range(WORLD)], server


def start(stores, present: set[int]) -> list:
    """What each rank that is there gets: a name, or its error."""
    seconds = 20.0 if len(present) == WORLD else 0.05

    def rank(r: int):
        try:
            return round_name(stores[0][r], r, WORLD, seconds)
        except (TimeoutError, RuntimeError) as e:
            return e

    with ThreadPoolExecutor(WORLD) as pool:
        return list(pool.map(rank, sorted(present)))


@given(st.lists(st.sets(st.integers(0, WORLD - 1), min_size=1), max_size=5))
@settings(max_examples=15, deadline=None, report_multiple_bugs=False)
def test_ranks_of_one_start_agree_on_a_name_whatever_earlier_ones_left(stores, starts):
    """A start that lacks a rank leaves greetings and answers behind, and gets nowhere."""
    before = set()
    for present in [*starts, set(range(WORLD))]:
        found = start(stores, present)
        names = {name for name in found if isinstance(name, str)}
        assert not names & before, "an earlier start's name"
        before |= names
        if len(present) == WORLD:
            assert len(names) == 1 and names == set(found), found
        elif 0 in present:
            assert isinstance(found[0], TimeoutError)
            missing = ", ".join(str(r) for r in range(WORLD) if r not in present)
            assert str(found[0]).endswith(f"there came no rank {missing}")


AGENT = """
import subprocess, sys, threading, time
from vtx_scale.launch import torchrun
rank = [sys.executable, "-c", '''
import os, sys, time
from vtx_scale.launch import torchrun
torchrun.watch(float(sys.argv[1]))
time.sleep(0.2)
if sys.argv[2]: torchrun.tell(int(sys.argv[2]))
os._exit(1)
''']
for code in sys.argv[2:]:
    subprocess.run([*rank, sys.argv[1], code.strip("-")])
print("waits", flush=True)
time.sleep(60)
"""


def agent(limit: float, *codes: str) -> subprocess.Popen:
    """One of two agents, which starts a rank for each of the codes with which it ends ("-" is
    killed), and then waits for the other.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", AGENT, str(limit), *codes],
        env={**os.environ, "GROUP_WORLD_SIZE": "2", "LOCAL_RANK": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=end_with_parent,
    )
    assert process.stdout.readline() == "waits\n"
    return process


@pytest.mark.parametrize("codes", [("-",), ("1",), ("-", "75")])
def test_an_agent_that_waits_for_one_that_is_gone_is_ended(codes):
    """After twice the limit: the others may need one to see that a rank is gone, one to come."""
    waits = agent(1.5, *codes)
    begun = time.monotonic()
    until = time.monotonic() + 20
    while waits.poll() is None and time.monotonic() < until:
        time.sleep(0.1)
    assert waits.returncode == -15, "it still waits"
    assert time.monotonic() - begun > 2.2  # of 3 s, some of them before it said that it waits
    _, said = waits.communicate()
    (line,) = said.splitlines()  # by the last rank's alone: the earlier saw the next one start
    assert (
        "within twice system.timeout=1.5 s. To go on, start torchrun on all machines again." in line
    )


@pytest.mark.parametrize(("code", "sentence"), [("-", True), ("1", True), ("75", False)])
def test_an_agent_that_ends_before_its_run_is_spoken_of(code, sentence):
    ended = agent(60, code)
    ended.kill()
    _, said = ended.communicate(timeout=30)
    assert ("torchrun has ended here before the run did" in said) == sentence
    assert not said or said.endswith("To go on, start torchrun on all machines again.\n")


def test_an_agent_whose_ranks_have_finished_is_left_alone():
    """It may wait for the others for as long as it wants."""
    waits = agent(0.3, "0")
    done = threading.Event()
    threading.Timer(3, done.set).start()
    done.wait()
    assert waits.poll() is None
    waits.kill()
    assert waits.communicate()[1] == ""
