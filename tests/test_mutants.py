"""Every line that tests/mutants.py breaks is seen by a test that it names."""

import re

import pytest

from tests.mutants import MUTANTS, ROOT, Mutant, Outcome, Trials, changed, copied, outcome


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_a_change_fits_the_code_of_today(mutant):
    """What it replaces stands in the file once, and the tests that it names are there."""
    body = (ROOT / mutant.file).read_text()
    assert changed(body, mutant) != body
    compile(changed(body, mutant), mutant.file, "exec")
    for test in mutant.tests:
        file, _, name = test.partition("::")
        assert (ROOT / file).is_file(), file
        function = name.partition("[")[0]
        assert not name or re.search(rf"^def {function}\(", (ROOT / file).read_text(), re.M), test
    assert mutant.promise.endswith(".") and mutant.tests


def test_names_are_told_apart():
    assert len({m.name for m in MUTANTS}) == len(MUTANTS)


def report(*cases):
    return f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>"


def case(name, inside=""):
    return f'<testcase classname="tests.test_a" name="{name}">{inside}</testcase>'


@pytest.mark.parametrize(
    ("cases", "kind"),
    [
        ([], "none"),
        ([case("a")], "passed"),
        ([case("a", '<skipped message="no g++"/>')], "skipped"),
        ([case("a"), case("b", '<failure message="assert 1 == 2"/>')], "asserted"),
        ([case("a", '<failure message="AssertionError: a step is missing"/>')], "asserted"),
        ([case("a", '<failure message="Failed: DID NOT RAISE UserError"/>')], "asserted"),
        ([case("a", '<failure message="KeyError: 3"/>')], "crashed"),
        ([case("a", '<failure message="AssertionError: rank 0: NameError: x"/>')], "crashed"),
        ([case("a", '<error message="failed on setup"/>')], "crashed"),
    ],
)
def test_an_assertion_alone_is_a_death(cases, kind):
    assert outcome(report(*cases)).kind == kind


def test_a_change_that_does_not_fit_is_no_death(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\nx = 1\n")
    twice = Mutant("twice", "a.py", "x = 1", "x = 2", ("a.py::test_a",), "None.")
    trials = Trials(tmp_path, {twice.tests: Outcome("passed")})
    assert trials.verdict(twice) == ("misfit", "twice: 'x = 1' stands 2 times in a.py")


@pytest.fixture(scope="module")
def trials():
    with copied() as tree:
        yield Trials(tree)


@pytest.mark.full
@pytest.mark.timeout(2000)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_a_broken_line_is_seen(trials, mutant):
    verdict, word = trials.verdict(mutant)
    if verdict == "skipped":
        pytest.skip(word)
    assert verdict == "dies", word


@pytest.mark.full
def test_the_copy_is_what_runs(trials):
    """A change without a meaning lives, and one that no code survives is no death."""
    tests = ("tests/data_pipeline/test_loader.py::test_an_integer_seed_of_64_bits",)
    where = "vtx_scale/data_pipeline/order.py"
    same = Mutant("same", where, "CHUNKS, WINDOW,", "CHUNKS , WINDOW,", tests, "None.")
    gone = Mutant("gone", where, "import numpy as np", "import nonumpy as np", tests, "None.")
    assert trials.verdict(same) == ("lives", "None.")
    assert trials.verdict(gone)[0] == "crashes"
