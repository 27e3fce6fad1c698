"""The planner's closed forms against the real thing."""

import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.runs import environment
from vtx_scale.planner.shapes import Parameter, held, owned, rows


def test_the_closed_form_is_what_1024_ranks_hold():
    """Every parameter of the largest recipes, on the first, a middle and the last rank."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.vtx_scale.many_ranks"],
        env=environment(),
        text=True,
        capture_output=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["rows"]) == 27
    for row in found["rows"]:
        assert row["held"] == row["planned"], (row["recipe"], row["rank"], row["layout"])
    first = [r for r in found["rows"] if r["rank"] == 0 and r["layout"] == "fsdp"]
    most = {r["recipe"]: sum(r["held"]) for r in first}
    assert most == {
        "dalle_12b": 14_867_851,
        "clip_vit_h14": 1_459_835,
        "vit_g14_jft3b": 1_659_110,
    }
    assert found["seconds"] < 60 and found["mib"] < 1000


SHAPES = st.lists(
    st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple), min_size=1, max_size=9
)


@given(SHAPES, st.integers(1, 17), st.sampled_from([None, "rows", "flat", "each", "tensors"]))
def test_parts_make_up_the_whole(shapes, ways, cut):
    """Rows and whole tensors exactly, flat parts with less padding than there are ranks for."""
    parameters = [Parameter(str(k), shape) for k, shape in enumerate(shapes)]
    whole = sum(p.numel for p in parameters)
    parts = [held(parameters, cut, ways, index) for index in range(ways)]
    if cut is None:
        assert parts == [whole] * ways
    elif cut in ("rows", "tensors"):
        assert sum(parts) == whole
    else:
        padding = 2 * ways if cut == "flat" else ways * len(shapes)
        assert len(set(parts)) == 1 and 0 <= sum(parts) - whole < padding
    if cut != "tensors":
        assert parts[0] == max(parts)


@pytest.mark.parametrize("count,ways", [(1, 4), (5, 4), (6, 4), (1_280, 1_024), (7, 3)])
def test_rows_are_those_of_torch(count, ways):
    chunks = [len(c) for c in torch.empty(count).chunk(ways)]
    assert [rows(count, ways, k) for k in range(ways)] == chunks + [0] * (ways - len(chunks))


def test_a_tensor_goes_to_the_rank_that_has_least():
    assert owned([5, 3, 3, 1, 4], 2) == [5 + 1 + 4, 3 + 3]
