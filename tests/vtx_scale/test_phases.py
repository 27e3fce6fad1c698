"""What a process is doing, and where its time goes."""

import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtx_scale.distributed import phases
from vtx_scale.distributed.phases import CAUSES, PHASES, Phases
from vtx_scale.launch.beats import BEGAN, Beats

NAMES = ("data_wait", "step", "evaluate", "save_stall", "anything")


class Clock:
    """A monotonic clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(phases, "time", clock)
    return clock


# a tree of phases: (name, seconds before, those inside, seconds after)
TREES = st.recursive(
    st.tuples(st.sampled_from(NAMES), st.floats(0, 9), st.just(()), st.floats(0, 9)),
    lambda inner: st.tuples(
        st.sampled_from(NAMES), st.floats(0, 9), st.lists(inner, max_size=3), st.floats(0, 9)
    ),
    max_leaves=12,
)


@settings(max_examples=50, deadline=None)
@given(TREES)
def test_an_inner_phase_takes_its_time_from_the_outer(tree):
    clock, wanted = Clock(), dict.fromkeys(CAUSES, 0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phases, "time", clock)
        found = Phases()
        found.reset(95.0)
        wanted["start.import"] = 5.0

        def go(node):
            name, before, inner, after = node
            with found.within(name):
                assert found.state().phase == name
                clock.now += before
                for child in inner:
                    go(child)
                clock.now += after
            cause = name if name in CAUSES else "step"
            wanted[cause] += before + after

        go(tree)
        now, spent = found.seconds()
    assert now == clock.now
    assert spent == pytest.approx({k: v for k, v in wanted.items() if k in spent})
    assert sum(spent.values()) == pytest.approx(now - found.began)


def test_an_exception_leaves_the_phase(clock):
    found = Phases()
    with pytest.raises(KeyError), found.within("step"), found.within("evaluate"):
        raise KeyError
    assert found.state().phase == "start.import"


def test_a_collective_is_counted_and_its_time_kept_apart(clock):
    found = Phases()
    with found.within("step"):
        clock.now += 1
        with found.collective():
            clock.now += 2
            assert found.state().inside
            with found.collective():  # one that is made of others
                clock.now += 4
        state = found.state()
        assert not state.inside and state.collectives == 2 and state.since == clock.now
    assert found.waited == 6
    assert found.seconds()[1]["step"] == 7
    found.counter = lambda: 17
    assert found.state().collectives == 17


def test_the_usual_stretch_is_that_of_its_own_phase(clock):
    found = Phases()
    for _ in range(300):
        with found.within("step"):
            clock.now += 1
            found.mark()
            clock.now += 2
        with found.within("evaluate"):
            clock.now += 50
    with found.within("step"):
        assert found.state().usual == 2
    with found.within("evaluate"):
        assert found.state().usual == 50


def test_a_collective_of_torchs_own_is_a_sign_of_progress(clock):
    """As of the look that shows it; what was computed before it is what is usual."""
    found = Phases()
    count = iter([0, 1, 1, 1, 1, *[9] * 90])
    found.counter = lambda: next(count)
    with found.within("step"):
        since = found.state().since
        clock.now += 30
        assert found.state().since == clock.now != since
        clock.now += 3
        assert found.state().since == clock.now - 3
    for _ in range(3):
        assert found.state().usual == 0, "too few steps to know"
        with found.within("step"):
            clock.now += 30
            with found.collective():
                clock.now += 500
    with found.within("step"):
        assert found.state().usual == 30


def test_a_mark_of_another_thread_is_none(clock):
    found = Phases()
    clock.now += 5
    beside = threading.Thread(target=found.mark)
    beside.start()
    beside.join()
    before = found.state().since
    found.mark()
    assert found.state().since == clock.now > before


def test_the_time_before_the_first_line_counts_as_import():
    """From the start of the process on; a process that was forked off begins anew."""
    script = (
        "import time; time.sleep(1)\n"
        "from vtx_scale.distributed.phases import PHASES\n"
        "print(PHASES.seconds()[1]['start.import'])\n"
        "import os\n"
        "if not os.fork(): print(PHASES.seconds()[1]['start.import'], flush=True); os._exit(0)\n"
        "os.wait()"
    )
    done = subprocess.run(
        [sys.executable, "-u", "-c", script], capture_output=True, text=True, check=True
    )
    parent, child = map(float, done.stdout.split())
    assert parent >= 1 > child


def test_an_attempt_begins_with_its_launcher():
    """In the first round with the process that starts it, whatever it did before; later with the
    round.
    """
    beats = Beats()
    try:
        beats.begin()
        assert float(beats.environment[BEGAN]) == PHASES.began
        beats.close()  # as another launcher's sweep does, where a round is long in coming
        beats.begin()
        assert float(beats.environment[BEGAN]) == beats.began > PHASES.began
    finally:
        beats.close()


def test_readers_in_other_threads_see_sums_that_hold():
    found, stop, faults = Phases(), threading.Event(), []

    def look() -> None:
        while not stop.is_set():
            now, spent = found.seconds()
            if abs(sum(spent.values()) - (now - found.began)) > 1e-6:
                faults.append((now, spent))
            found.state()

    readers = [threading.Thread(target=look) for _ in range(2)]
    for reader in readers:
        reader.start()
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        with found.within("step"), found.within("data_wait"):
            pass
    stop.set()
    for reader in readers:
        reader.join()
    assert not faults


def test_the_process_has_phases_of_its_own():
    assert PHASES.state().phase in (*CAUSES, "start.import")
