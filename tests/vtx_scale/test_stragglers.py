"""Which rank holds the others up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtx_scale.trainer.stragglers import RATIO, RUNNING, Slowness

SECONDS = st.floats(0.01, 0.03)


def told(windows: list[list[float]]) -> list[dict[int, float]]:
    slowness = Slowness(len(windows[0]))
    return [slowness.window(seconds) for seconds in windows]


def test_it_is_named_once_with_its_ratio():
    found = told([[0.1, 0.15, 0.1]] * 6)
    assert found == [{}, {}, {1: pytest.approx(1.5)}, {}, {}, {}]
    assert told([[0.1, 0.2]] * 3)[2] == {1: pytest.approx(2.0)}


def test_one_window_between_begins_anew():
    slow, even = [0.1, 0.15, 0.1], [0.1, 0.1, 0.1]
    assert not any(told([slow, slow, even, slow, slow]))
    assert any(told([slow, slow, even, slow, slow, slow]))


def test_it_may_be_slow_by_a_fifth_or_by_little():
    assert not any(told([[0.1, 0.119, 0.1]] * 5))
    assert not any(told([[0.001, 0.005, 0.001]] * 5))  # of a step that short nobody minds
    assert not any(told([[0.1]] * 5))


@given(st.lists(st.lists(SECONDS, min_size=4, max_size=4), min_size=1, max_size=9))
def test_whoever_is_named_was_slow_for_windows_running(windows):
    for i, found in enumerate(told(windows)):
        for rank in found:
            last = windows[i - RUNNING + 1 : i + 1]
            assert len(last) == RUNNING
            assert all(w[rank] > RATIO * sorted(w)[1] for w in last)
