"""P2 and P3 over every strategy: the run of one process, and one checkpoint for all of them."""

import itertools
import json
import math
from collections import Counter

import pytest

from tests.promises.test_objectives import RELU
from tests.promises.test_p3_one_checkpoint import read_and_write
from tests.ranks import on_ranks
from tests.require import need
from tests.runs import assert_same_bits, losses, smoke, train_on_ranks
from tests.same_run import assert_same_run, runs_alone
from vtx_scale.launch import override, recipes

pytestmark = pytest.mark.slow

PACKAGES = {"zero1": "deepspeed", "zero2": "deepspeed", "zero3": "deepspeed"}
PACKAGES |= {"fairscale": "fairscale"}
OBJECTIVES = ("clip_vit_b32", "dino_vit_s16", "resnet50_imagenet", "dalle_12b")
# strategy, world, more keys
CELLS = {
    "ddp-2": ("ddp", 2),
    "fsdp-3": ("fsdp", 3),
    "hsdp-4": ("hsdp", 4),
    "tp-2": ("tp", 2),
    "tp-2x2": ("fsdp", 4, "system.tp=2"),
    "zero1-3": ("zero1", 3),
    "zero2-2": ("zero2", 2),
    "zero3-3": ("zero3", 3),
    "fairscale-3": ("fairscale", 3),
}
# of those that need no package beside torch; those of tests/vtx_scale (test_tp, test_zero,
# test_fairscale) and test_objectives come to it
COVERING = {
    ("dino_vit_s16", "ddp-2"),
    ("dino_vit_s16", "fsdp-3"),
    ("dino_vit_s16", "hsdp-4"),
    ("resnet50_imagenet", "hsdp-4"),
    ("resnet50_imagenet", "tp-2x2"),
    ("clip_vit_b32", "tp-2x2"),
}
MICRO = {"fsdp-3", "tp-2x2", "zero1-3", "zero3-3"}  # in micro-batches, where they may be


def cells():
    for recipe, cell in itertools.product(OBJECTIVES, CELLS):
        marks = [] if (recipe, cell) in COVERING else [pytest.mark.full]
        yield pytest.param(recipe, cell, marks=marks)


def required(*names):
    """Skips a test, or fails, where the package of a strategy is absent."""
    for name in names:
        if name in PACKAGES:
            need(PACKAGES[name])


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return runs_alone(tmp_path_factory)


@pytest.mark.parametrize(("recipe", "cell"), list(cells()))
def test_it_is_the_run_of_one_process(alone, tmp_path, recipe, cell):
    """Losses, norms, an evaluator's numbers, and parameters at the end. Networks with ReLUs in
    float64 where a strategy computes in it, else over their first steps.
    """
    strategy, world, *more = CELLS[cell]
    required(strategy)
    exact = recipe in RELU and strategy not in PACKAGES
    keys = ["steps=4" if recipe in RELU and not exact else "steps=8"]
    keys += ["system.precision=fp64"] if exact else []
    if cell in MICRO and recipe != "resnet50_imagenet":
        more.append("system.micro_batch=3")
    train_on_ranks(tmp_path / "run", world, strategy, *keys, *more, recipe=recipe)
    limits = {"rel": 1e-11, "apart": 1e-9} if exact else {}
    assert_same_run(tmp_path / "run", alone(recipe, *keys), **limits)


# in an order in which neighbours are as unlike as can be
PLACES = {
    "single-1": ("single", 1),
    "zero1-2": ("zero1", 2),
    "hsdp-4": ("hsdp", 4),
    "zero3-2": ("zero3", 2),
    "ddp-3": ("ddp", 3),
    "tp-2": ("tp", 2),
    "zero2-3": ("zero2", 3),
    "fsdp-2": ("fsdp", 2),
    "fairscale-3": ("fairscale", 3),
    "tp-2x2": ("fsdp", 4, "system.tp=2"),
}
RING = list(itertools.pairwise([*PLACES, *list(PLACES)[:1]]))
MORE = [("tp-2x2", "zero3-2"), ("zero2-3", "hsdp-4"), ("fsdp-2", "tp-2"), ("tp-2", "single-1")]


def pairs():
    for pair in itertools.permutations(PLACES, 2):
        packaged = any(PLACES[name][0] in PACKAGES for name in pair)
        marks = [pytest.mark.services] if packaged else []
        marks += [] if pair in (*RING, *MORE) else [pytest.mark.full]
        yield pytest.param(*pair, marks=marks)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Place -> a run folder with a checkpoint at step 4."""
    folders = {}

    def get(place):
        if place not in folders:
            strategy, world, *more = PLACES[place]
            folders[place] = tmp_path_factory.mktemp(place) / "run"
            keys = ("steps=8", "system.leave_after=4", *more)
            train_on_ranks(folders[place], world, strategy, *keys, recipe="dino_vit_s16", code=75)
        return folders[place]

    return get


@pytest.mark.parametrize(("source", "target"), list(pairs()))
def test_a_checkpoint_opens_under_another(saved, tmp_path, source, target):
    """Loaded and saved again without a step: parameters, the teacher, buffers and both moments,
    equal to the bit.
    """
    required(PLACES[source][0], PLACES[target][0])
    strategy, world, *more = PLACES[target]
    run = smoke(f"system.strategy={strategy}", *more, recipe="dino_vit_s16")
    folder, again = saved(source), tmp_path / "again"
    on_ranks(world, read_and_write, override.to_dict(run), recipes.STRANGERS, folder, again)
    assert_same_bits(folder, again)


def of_place(place):
    marks = [pytest.mark.services] if PLACES[place][0] in PACKAGES else []
    return pytest.param(place, marks=marks)


@pytest.mark.parametrize("place", [of_place(place) for place in PLACES])
def test_each_value_is_stored_once(saved, place):
    """The boxes of a tensor add up to it, whichever ranks hold copies of which."""
    required(PLACES[place][0])
    counts, shapes = Counter(), {}
    for table in (saved(place) / "checkpoints" / "step-00000004").glob("table-*.json"):
        for row in json.loads(table.read_bytes())["slices"]:
            counts[row["key"]] += math.prod(b - a for a, b in row["box"])
            shapes[row["key"]] = row["shape"]
    assert counts == {key: math.prod(shape) for key, shape in shapes.items()} and len(counts) > 10


@pytest.mark.parametrize(
    "places",
    [
        ("tp-2x2", "hsdp-4", "ddp-3", "tp-2"),
        pytest.param(("zero3-2", "tp-2x2", "fairscale-3", "zero2-3"), marks=pytest.mark.services),
    ],
)
def test_four_strategies_in_one_run(alone, tmp_path, places):
    required(*(PLACES[place][0] for place in places))
    for place in places:
        strategy, world, *more = PLACES[place]
        code = 0 if place == places[-1] else 75
        keys = ("steps=8", "system.leave_after=2", *more)
        train_on_ranks(tmp_path / "run", world, strategy, *keys, recipe="dino_vit_s16", code=code)
    one = alone("dino_vit_s16", "steps=8")
    assert losses(tmp_path / "run") == pytest.approx(losses(one), rel=1e-5)
    assert_same_run(tmp_path / "run", one)
