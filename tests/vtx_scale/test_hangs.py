"""Which of some ranks is stuck, by their heartbeats alone."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vtx_scale.test_phases import Clock
from vtx_scale.distributed import phases
from vtx_scale.distributed.phases import Phases
from vtx_scale.launch import beats as beats_module
from vtx_scale.launch.beats import BEATS, Beats, Watcher
from vtx_scale.launch.hangs import DATA, FLOORS, Beat, judge, limit, waits

TIMEOUT = 10.0
PHASES = (*FLOORS, *DATA, "start.import", "start.rendezvous")


def rank(number: int, phase: str = "step", idle: float = 0.1, **more) -> Beat:
    return Beat(number, phase, **{"step": 7, "idle": idle, "collectives": 100, "usual": 0.1} | more)


@pytest.mark.parametrize(
    ("beats", "stuck"),
    [
        ([rank(0), rank(1)], None),
        # the one that is not in the collective
        ([rank(0, idle=11, inside=True), rank(1, idle=11)], 1),
        ([rank(0, idle=11, inside=True), rank(1, idle=3), rank(2, idle=11, inside=True)], 1),
        # before the limit nobody is
        ([rank(0, idle=9, inside=True), rank(1, idle=9)], None),
        # of two that are not in it the one that has not come as far
        ([rank(0, idle=11, inside=True), rank(1, idle=8), rank(2, idle=9, step=6)], 2),
        ([rank(0, idle=11, inside=True), rank(1, collectives=99), rank(2, collectives=98)], 2),
        # all wait: for the one that is a collective behind, or for the network
        ([rank(0, idle=11, inside=True), rank(1, idle=11, inside=True, collectives=99)], 1),
        ([rank(0, idle=11, inside=True), rank(1, idle=11, inside=True)], -1),
        # in its evaluation, its own limit; with the others waiting, theirs
        ([rank(0, "evaluate", idle=50), rank(1, "evaluate", idle=50)], None),
        ([rank(0, "evaluate", idle=101), rank(1, "evaluate", idle=50)], 0),
        ([rank(0, "evaluate", idle=11), rank(1, "evaluate", idle=11, inside=True)], 0),
        # what a rank usually needs counts
        ([rank(0, idle=51)], 0),
        ([rank(0, idle=58, usual=12.0)], None),
        ([rank(0, idle=61, usual=12.0)], 0),
        # of collectives inside of torch their number tells: who has entered more waits
        ([rank(0, idle=11), rank(1, idle=11)], None),
        ([rank(0, idle=11), rank(1, idle=11, collectives=99)], 1),
        ([rank(0, idle=11, step=8, collectives=0), rank(1, idle=9)], 1),
        # but it may compute as long as it usually does, and waits from then on
        ([rank(0, idle=12, usual=13.0), rank(1, idle=12, usual=13.0, collectives=98)], None),
        ([rank(0, idle=24, usual=13.0), rank(1, idle=24, usual=13.0, collectives=98)], 1),
        # of first steps nobody knows yet what is usual
        ([rank(0, idle=290, usual=0), rank(1, idle=290, usual=0, collectives=98)], None),
        ([rank(0, idle=301, usual=0), rank(1, idle=9, usual=0)], 0),
        # a first step compiles, a load loads
        ([rank(0, "start.compile", idle=200), rank(1, "start.compile", idle=290)], None),
        ([rank(0, "start.load", idle=90)], None),
        # slow data are no hang, for whoever waits for them either
        ([rank(0, "data_wait", idle=1e5), rank(1, "data_wait", idle=1e5, inside=True)], None),
        ([rank(0, "evaluate.data", idle=1e5)], None),
        # but one that holds Python's lock is, wherever it was at its last beat
        ([rank(0, idle=11, inside=True), rank(1, "data_wait", idle=11, silent=10.5)], 1),
        ([rank(0, "data_wait", idle=99, silent=99)], None),
        ([rank(0, "data_wait", idle=101, silent=101)], 0),
        # a rank that is stopped: named by that, when the limit has passed since
        ([rank(0, idle=2, inside=True), rank(1, "data_wait", idle=5, silent=3, still=True)], None),
        ([rank(0, idle=2, inside=True), rank(1, "data_wait", idle=15, silent=11, still=True)], 1),
        ([rank(0, idle=11, inside=True), rank(1, inside=True, still=True, silent=11)], 1),
        # one that never began
        ([rank(0, idle=11, inside=True), rank(1, "start.import", step=-1, idle=99)], 1),
    ],
)
def test_the_stuck_one_is_named(beats, stuck):
    verdict = judge(beats, TIMEOUT)
    if stuck is None:
        assert verdict is None
    else:
        assert verdict is not None
        assert stuck == (verdict.beat.rank if verdict.beat else -1)
        if verdict.beat:
            assert f"rank {stuck}" in str(verdict)
            assert set(verdict.waiting) == {b.rank for b in beats if waits(b, beats)} - {stuck}


BEAT = st.builds(
    Beat,
    st.just(0),
    st.sampled_from(PHASES),
    st.integers(0, 3),
    st.floats(0, 400),
    st.floats(0, 30),
    st.booleans(),
    st.integers(0, 3),
    st.floats(0, 20),
    st.booleans(),
)
WORLD = st.lists(BEAT, min_size=1, max_size=5).map(
    lambda beats: [replace(b, rank=i) for i, b in enumerate(beats)]
)


@settings(max_examples=300, deadline=None)
@given(WORLD, st.randoms())
def test_what_holds_of_every_verdict(beats, random):
    verdict = judge(beats, TIMEOUT)
    late = [
        b for b in beats if (b.silent if b.still else b.idle) > limit(b, TIMEOUT, waits(b, beats))
    ]
    if verdict is None:
        outside = [b for b in beats if not b.inside or b.still]
        assert not late or all(b.phase in DATA and not b.still for b in outside)
        assert not late or all(b.silent <= TIMEOUT for b in outside)
        return
    assert late
    mixed = list(beats)
    random.shuffle(mixed)
    other = judge(mixed, TIMEOUT)  # the order of ranks does not count but where they are alike
    assert other is not None and (other.beat is None) == (verdict.beat is None)
    if (stuck := verdict.beat) is None:
        assert all(b.inside and not b.still for b in beats)
        return
    assert stuck.still or stuck.phase not in DATA or stuck.inside or stuck.silent > TIMEOUT
    if any(not b.inside and b.phase not in DATA for b in beats):
        assert stuck.still or not stuck.inside
    # time alone makes no rank come on
    longer = [replace(b, idle=b.idle + 5, silent=b.silent + 5) for b in beats]
    assert judge(longer, TIMEOUT) is not None


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_ranks_that_come_on_are_never_found_to_hang(data):
    """Each computes, for longer than the limit too, between collectives of torch's own; beats are
    of different moments, so that their counts differ.
    """
    longest = data.draw(st.floats(0.5, 5 * TIMEOUT))  # between two collectives
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phases, "time", clock)
        ranks = [Rank(clock) for _ in range(2)]
        for _ in range(data.draw(st.integers(1, 6))):
            for r in ranks:
                r.phases.turn("step")
            for _ in range(data.draw(st.integers(1, 4))):
                left = longest
                while left > 0:
                    clock.now, left = clock.now + min(1.0, left), left - 1
                    ahead = data.draw(st.integers(0, 1)) if left <= 0 else -1
                    for k, r in enumerate(ranks):
                        r.entered += k == ahead
                        r.beat()
                    beats = [r.as_read(k) for k, r in enumerate(ranks)]
                    assert judge(beats, TIMEOUT) is None
                    if left <= 0:
                        ranks[1 - ahead].entered += 1


class Rank:
    """A rank that counts torch's collectives, and its last beat."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.phases, self.entered = clock, Phases(), 0
        self.phases.reset(clock.now)
        self.phases.counter = lambda: self.entered

    def beat(self) -> None:
        self.last = self.phases.state(), self.clock.now

    def as_read(self, number: int) -> Beat:
        (s, at), now = self.last, self.clock.now
        about = (s.step, now - s.since, now - at, s.inside, s.collectives, s.usual)
        return Beat(number, s.phase, *about)


RANK = """
import sys, time
from vtx_scale.distributed.phases import PHASES
from vtx_scale.launch.beats import Heart
def standing():
    with PHASES.within("evaluate"):
        PHASES.step = 12
        {how}
heart = Heart(3, every=0.1)
standing()
"""
ASLEEP = "time.sleep(60)"
# a call that keeps Python's lock: no thread of this process runs meanwhile
HOLDING = "import re; re.match('(a+)+$', 'a' * 60 + 'b')"


@pytest.mark.parametrize("how", [ASLEEP, HOLDING])
def test_a_process_shows_where_it_stands(how):
    """Also one that runs no Python any more; one that is stopped, by the system's word."""
    beats = Beats()
    script = RANK.format(how=how)
    rank = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, **beats.environment})
    try:
        assert [b.phase for b in beats.read([3])] == ["start.import"]
        until = time.monotonic() + 60
        held = how == HOLDING
        while (beat := beats.read([3])[0]).phase != ("start.import" if held else "evaluate"):
            assert time.monotonic() < until
            time.sleep(0.05)
        while held and (beat := beats.read([3])[0]).silent < 2 or not beat.pid:
            assert time.monotonic() < until
            time.sleep(0.05)
        assert beat.pid == rank.pid and not beat.still and beat.idle >= 0
        if not held:
            assert (beat.step, beat.silent < 5) == (12, True)
        assert "standing" in beats.stacks([3])[3]
        rank.send_signal(signal.SIGSTOP)
        while not (beat := beats.read([3])[0]).still:
            assert time.monotonic() < until
            time.sleep(0.05)
        assert "State:\tT" in beats.stacks([3])[3]
    finally:
        rank.kill()
        rank.wait()
        beats.close()
    assert not beats.folder.exists()


def test_beats_have_a_folder_where_there_is_room(tmp_path, monkeypatch):
    """A full memory costs the watching at most, and no run."""
    full, home = tmp_path / "full", tmp_path / "home"
    full.mkdir()
    home.mkdir()
    monkeypatch.setattr(beats_module, "MEMORY", full)
    monkeypatch.setattr(beats_module.tempfile, "gettempdir", lambda: str(home))
    write = beats_module.Path.write_bytes

    def no_room(path, body):
        if path.is_relative_to(full):
            raise OSError(28, "No space left on device")
        return write(path, body)

    monkeypatch.setattr(beats_module.Path, "write_bytes", no_room)
    beats = Beats()
    assert beats.folder.parent == home and not list(full.iterdir())
    beats.close()
    monkeypatch.setattr(beats_module.tempfile, "gettempdir", lambda: str(full))
    beats = Beats()
    assert beats.folder is None and BEATS not in beats.environment
    beats.begin()
    assert beats.read([0, 1]) == [] and beats.stacks([0, 1]) == {}
    beats.close()


@pytest.mark.parametrize("offset", [0.0, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("hangs", [False, True])
def test_a_beat_from_before_its_rank_came_on_is_no_proof(tmp_path, monkeypatch, offset, hangs):
    """Rank 0 waits for its data for longer than the limit, rank 1 in a collective for rank 0. Then
    both come on, and each beats when its second is over.
    """
    clock = Clock()
    monkeypatch.setattr(beats_module.time, "monotonic", lambda: clock.now)
    watcher = Watcher(tmp_path, "one", 6.0, lambda line: None)
    last, verdicts = {}, []
    for tick in range(300):  # tenths of a second
        clock.now = 1000 + tick / 10
        came_on = tick >= 105 and not hangs
        at = (1000 + 10.5, 40, 80) if came_on else (1000.0, 19, 38)
        for rank, beats_at in ((0, 0), (1, round(10 * offset))):
            if tick % 10 == beats_at:
                inside = (rank == 1) != came_on
                last[rank] = (at, inside, "step" if came_on or hangs else "data_wait", clock.now)
        if len(last) == 2 and tick % 10 == 0 and watcher.due:  # as rank 0 has beaten
            beats = [
                Beat(rank, phase, step, clock.now - since, clock.now - beat, inside, count, 0.1)
                for rank, ((since, step, count), inside, phase, beat) in sorted(last.items())
            ]
            verdict = watcher.see(beats)
            verdicts += [(clock.now, verdict)] if verdict else []
        if came_on and tick > 130:
            break
    if not hangs:
        assert not verdicts
        return
    at, verdict = verdicts[0]
    assert verdict.beat.rank == 0 and at < 1000 + 6 + 3.1


def test_a_watcher_that_was_stopped_itself_gives_the_ranks_their_time_again(tmp_path, monkeypatch):
    """As where a container is paused: all beats are old when it goes on."""
    clock = Clock()
    monkeypatch.setattr(beats_module.time, "monotonic", lambda: clock.now)
    clock.now = 1000.0
    watcher = Watcher(tmp_path, "one", 10.0, lambda line: None)
    old = [Beat(rank, "step", 5, idle=600, silent=600, usual=0.1, pid=1) for rank in (0, 1)]
    assert watcher.due and watcher.see(old) is not None
    watcher = Watcher(tmp_path, "one", 10.0, lambda line: None)
    assert watcher.due and watcher.see([]) is None
    clock.now += 600
    assert watcher.due and watcher.see(old) is None
    for _ in range(60):
        clock.now += 1.01
        assert watcher.due
        verdict = watcher.see([replace(b, idle=b.idle + 70, silent=b.silent + 70) for b in old])
    assert verdict is not None, "ranks that hang behind the pause are found"
