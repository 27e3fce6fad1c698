"""Where a run's time went: every second has one cause, whatever became of the run."""

import json
import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtx_scale.distributed.phases import CAUSES, Phases
from vtx_scale.trainer.goodput import FILE, Times, ended, read, tally


def line(start, stop, at, attempt="a", /, behind=None, **seconds) -> dict:
    seconds = seconds or {"step": stop - start}
    behind = at if behind is None else behind
    return {
        **{"kind": "time", "from": start, "to": stop, "seconds": seconds},
        **{"behind": behind, "step": at, "attempt": attempt},
    }


def end(at, code, attempt="a") -> dict:
    return {"kind": "end", "at": at, "code": code, "attempt": attempt}


def test_of_a_run_that_nothing_happened_to():
    rows = [
        line(0, 10, 0, **{"start.import": 4, "start.load": 6}),
        line(10, 20, 40, behind=0, step=7, data_wait=3),
        end(20, 0),
    ]
    found = tally(rows)
    assert found.wall == 20 and found.share == 0.35
    assert found.seconds == {"start.import": 4, "start.load": 6, "data_wait": 3, "step": 7}


def test_steps_that_were_done_again_are_lost():
    rows = [
        line(0, 10, 50, behind=0),
        line(10, 20, 100, behind=50),
        line(20, 30, 120, behind=100, step=4, evaluate=6),
        end(33, -9),
        line(40, 50, 80, "b", behind=80, **{"start.load": 10}),
        line(50, 60, 130, "b", behind=80),
    ]
    found = tally(rows)
    # of the second line 20 of 50 steps, of the third all
    assert found.seconds.get("lost") == pytest.approx(4 + 4)
    assert found.seconds["step"] == pytest.approx(10 + 6 + 10)
    assert found.seconds["evaluate"] == 6
    assert (found.seconds["detect"], found.seconds["down"]) == (3, 7)
    assert sum(found.seconds.values()) == pytest.approx(found.wall) == 60


def test_a_roll_back_inside_of_an_attempt_loses_too():
    rows = [line(0, 10, 50, behind=0), line(10, 20, 40, behind=30), line(20, 30, 50, behind=40)]
    assert tally(rows).seconds == pytest.approx({"step": 26, "lost": 4})


def test_steps_that_go_on_within_one_line_are_not_lost():
    rows = [line(0, 10, 3, behind=3), line(10, 20, 3, behind=3), line(20, 30, 4, behind=3)]
    assert tally(rows).seconds == {"step": 30}


@pytest.mark.parametrize(
    ("marks", "wanted"),
    [
        ([], {"down": 20}),
        ([end(10, 75)], {"stopped": 20}),
        ([end(10.5, 0)], {"stopped": 20}),
        ([end(14, 1)], {"detect": 4, "down": 16}),
        ([end(9.7, -9)], {"down": 20}),
        # killed, started again, and then somebody pressed Ctrl-C
        ([end(12, -9), end(25, 130)], {"detect": 2, "down": 13, "stopped": 5}),
        # by a clock that is coarser than that of the next attempt's start
        ([end(30.01, -9)], {"detect": 20}),
        # its rank 0 knew it, and its launcher
        ([end(11, 71), end(12, 71)], {"detect": 1, "down": 19}),
    ],
)
def test_what_is_between_two_attempts(marks, wanted):
    rows = [line(0, 10, 5), *marks, line(30, 40, 5, "b")]
    found = tally(rows).seconds
    assert {c: s for c, s in found.items() if c not in ("step", "lost")} == pytest.approx(wanted)


def test_the_end_of_an_attempt_says_nothing_of_the_one_right_behind_it():
    rows = [line(0, 10, 5), end(16, 70), line(16.1, 16.3, 5, "b"), end(22, 70, "b")]
    found = tally([*rows, line(22.1, 23, 6, "c")])
    assert found.seconds["detect"] == pytest.approx(6 + 5.7)
    assert found.seconds["down"] == pytest.approx(0.2)


def test_what_a_rank_did_while_another_hung_is_detection():
    rows = [
        line(0, 10, 5, behind=0),
        line(10, 20, 5, behind=5),
        {**end(24, 70), "since": 12},
        line(30, 40, 5, "b", behind=5),
    ]
    wanted = {"step": 20, "lost": 2, "detect": 12, "down": 6}
    assert tally(rows).seconds == pytest.approx(wanted)


def test_time_in_which_it_was_stopped_does_not_count_for_the_share():
    rows = [line(0, 10, 5, behind=0), end(10, 75), line(1000, 1010, 9, "b", behind=5)]
    assert tally(rows).share == 1.0


def test_an_overlap_belongs_to_the_newer_attempt():
    rows = [line(0, 100, 50, behind=0), line(60, 70, 50, "b", evaluate=10), line(70, 90, 50, "b")]
    found = tally(rows)
    assert found.wall == 90
    assert found.seconds["evaluate"] == 10
    assert sum(found.seconds.values()) == pytest.approx(90)


NUMBER = st.one_of(st.floats(-5, 200), st.sampled_from([math.nan, math.inf, None, "x", True]))
ANY = st.fixed_dictionaries(
    {},
    optional={
        "kind": st.sampled_from(["time", "time", "time", "end", "hang", 3]),
        "from": NUMBER,
        "to": NUMBER,
        "at": NUMBER,
        "code": st.sampled_from([0, 75, 1, -9, None]),
        "seconds": st.dictionaries(st.sampled_from([*CAUSES, "strange"]), NUMBER, max_size=4),
        "behind": NUMBER,
        "step": NUMBER,
        "attempt": st.sampled_from(["a", "b", "c", 7, None]),
    },
)
SOUND = st.builds(
    lambda a, n, s, b, k, c: line(a, a + n, b + k, s, behind=b, **{c: n / 2, "step": n / 2}),
    st.floats(0, 200),
    st.floats(0.1, 30),
    st.sampled_from("abcd"),
    st.integers(0, 40),
    st.integers(0, 40),
    st.sampled_from([c for c in CAUSES if c != "step"]),
)
MARK = st.builds(
    lambda at, code, since, s: end(at, code, s) | ({"since": since} if code == 70 else {}),
    st.floats(0, 250),
    st.sampled_from([0, 75, 1, -9, 70]),
    st.floats(0, 250),
    st.sampled_from("abcd"),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.one_of(SOUND, SOUND, MARK, ANY), max_size=12))
def test_the_causes_add_up_to_the_wall_time(rows):
    found = tally(rows)
    assert set(found.seconds) <= set(CAUSES)
    assert all(seconds > 0 for seconds in found.seconds.values())
    assert sum(found.seconds.values()) == pytest.approx(found.wall, rel=1e-6, abs=1e-6)
    assert 0 <= found.share <= 1


@settings(max_examples=100, deadline=None)
@given(st.lists(SOUND, min_size=1, max_size=8), st.randoms())
def test_the_order_of_lines_does_not_count(rows, random):
    mixed = list(rows)
    random.shuffle(mixed)
    assert tally(mixed).wall == pytest.approx(tally(rows).wall)


def test_lines_in_a_folder(tmp_path):
    """What a process adds, with one end that it sees and one that its launcher does; a torn line
    costs its own seconds alone.
    """
    for attempt, code in (("a", 75), ("b", 1)):
        phases = Phases()
        phases.reset()
        times = Times(phases, every=0.05)
        times.begin(tmp_path, attempt, 0)
        with phases.within("step"):
            until = phases.seconds()[0] + 0.3
            while phases.seconds()[0] < until:
                phases.step += 1
        times.close(code)
        ended(tmp_path, attempt, code)
    body = (tmp_path / FILE).read_text()
    rows = [json.loads(row) for row in body.splitlines()]
    spent = [r for r in rows if r["kind"] == "time"]
    assert len(spent) > 4 and [r["code"] for r in rows if r["kind"] == "end"] == [75, 75, 1, 1]
    for row in spent:
        assert sum(row["seconds"].values()) == pytest.approx(row["to"] - row["from"], abs=1e-4)
    found = read(tmp_path)
    assert sum(found.seconds.values()) == pytest.approx(found.wall)
    # the second began where the first did: its steps are done again
    assert found.seconds["lost"] > 0.2 and found.seconds["step"] > 0.2
    torn = body.splitlines()
    torn[2] = torn[2][:30]
    (tmp_path / FILE).write_text("\n".join(torn))
    again = read(tmp_path)
    assert again.wall == pytest.approx(found.wall)
    assert sum(again.seconds.values()) == pytest.approx(again.wall)


def test_a_process_that_goes_back_begins_a_line(tmp_path):
    phases = Phases()
    phases.reset()
    times = Times(phases)
    with phases.within("step"):
        for first, last in ((4, 50), (30, 60)):
            times.begin(tmp_path, "a", first)
            assert phases.step == first
            time.sleep(0.2)
            phases.step = last
    times.close(0)
    rows = [json.loads(row) for row in (tmp_path / FILE).read_text().splitlines()]
    steps = [(r["behind"], r["step"]) for r in rows if r["kind"] == "time"]
    assert steps == [(4, 4), (4, 50), (30, 60)]
    # 20 of 46 steps, of the time behind the first line
    spent = rows[1]["seconds"]["step"]
    assert read(tmp_path).seconds["lost"] == pytest.approx(spent * 20 / 46, abs=0.02)


def test_share_counts_what_earlier_attempts_took(tmp_path):
    rows = [line(0, 50, 10, "0", behind=0), end(60, 1, "0")]
    (tmp_path / FILE).write_text("".join(json.dumps(r) + "\n" for r in rows))
    phases = Phases()
    times = Times(phases)
    assert times.share() is None
    times.begin(tmp_path, "1", 10)
    while times.share() is None:
        pass
    # long ago: nearly all of it was down
    assert 0 < times.share() < 1e-3
    times.close(0)
    assert times.share() is None


def test_a_folder_that_cannot_be_written_ends_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    times = Times(Phases(), every=0.01)
    times.begin(tmp_path / "file", "a", 0)
    times.close(0)
