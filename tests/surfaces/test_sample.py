"""`vtx sample` as its user types it: pictures of iGPT and DALL-E, the judge,
and what is refused.
"""

import numpy as np
import pytest
from PIL import Image

from tests.require import need
from tests.runs import train, train_on_ranks, vtx

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folders = {}

    def get(recipe):
        if recipe not in folders:
            folders[recipe] = tmp_path_factory.mktemp(recipe) / "run"
            train_on_ranks(folders[recipe], 1, "single", "steps=2", recipe=recipe)
        return folders[recipe]

    return get


def pictures(done):
    assert done.returncode == 0, done.stderr
    return [np.asarray(Image.open(line)) for line in done.stdout.split()]


def test_dalle_draws_for_captions(runs, tmp_path):
    """The same pictures for the same seed, whatever is drawn beside them."""
    run = runs("dalle_12b")
    texts = ("--text", "a red circle", "--text", "b")
    first = pictures(vtx("sample", run, tmp_path / "a", *texts, "--count", 2))
    again = pictures(vtx("sample", run, tmp_path / "b", *texts, "--count", 2))
    other = pictures(vtx("sample", run, tmp_path / "c", *texts, "--count", 2, "--seed", 1))
    assert len(first) == 4 and first[0].shape == (32, 32, 3)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    kept = pictures(
        vtx(
            "sample",
            run,
            tmp_path / "d",
            "--text",
            "a red circle",
            "--count",
            2,
            "--rerank",
            runs("clip_vit_b32"),
            "--keep",
            1,
        )
    )
    assert len(kept) == 1 and any(np.array_equal(kept[0], p) for p in first[:2])


def test_igpt_draws_without(runs, tmp_path):
    assert len(pictures(vtx("sample", runs("igpt_s"), tmp_path / "a", "--count", 3))) == 3


@pytest.mark.parametrize(
    ("recipe", "words", "sentence"),
    [
        ("dalle_12b", (), "add --text CAPTION"),
        ("igpt_s", ("--text", "x"), "--text and --rerank are for a run of DALL-E"),
        ("clip_vit_b32", (), "draws no pictures"),
        ("dalle_12b", ("--text", "x", "--count", "0"), "are 1 or more"),
    ],
)
def test_refusals(runs, tmp_path, recipe, words, sentence):
    done = vtx("sample", runs(recipe), tmp_path / "out", *words)
    assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_palette_is_found_and_used(tmp_path):
    """`vtx data palette` on toy shards; the run holds its colours, so that the file may go."""
    need("sklearn")
    toy = vtx("data", "toy", tmp_path / "toy", "--samples", 16, "--shards", 1, "--size", 32)
    assert toy.returncode == 0, toy.stderr
    file = tmp_path / "p.json"
    done = vtx("data", "palette", tmp_path / "toy", "--colours", 8, "--side", 16, "--out", file)
    assert done.returncode == 0 and file.exists(), done.stderr
    keys = (f"objective.palette={file}", "objective.net.colours=8", "steps=2")
    train(tmp_path / "run", *keys, recipe="igpt_s")
    assert str(file) not in (tmp_path / "run" / "run.json").read_text()
    assert (
        "objective.net.colours=8"
        in train(tmp_path / "other", f"objective.palette={file}", recipe="igpt_s", code=2).stderr
    )
    few = vtx("data", "palette", tmp_path / "toy", "--colours", 100_000, "--side", 2)
    assert few.returncode == 2 and "fewer than 100000 colours" in few.stderr
