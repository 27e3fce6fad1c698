"""ZeRO by DeepSpeed: the run of one process under every stage, with what each could get wrong."""

import pytest

from tests.require import need
from tests.runs import (
    COLOUR,
    assert_same_bits,
    losses,
    smoke,
    train,
    train_on_ranks,
)
from tests.same_run import assert_same_run, runs_alone
from tests.skips import skips, train_poisoned
from tests.vtx_scale.gaps import train_with_gaps

pytestmark = [pytest.mark.services, pytest.mark.slow]

CELLS = [("zero1", 3), ("zero2", 2), ("zero3", 3)]
FEW = ("steps=4",)  # networks with ReLUs, in float32
OBJECTIVES = {
    "clip_vit_b32": ("steps=8",),
    "dino_vit_s16": ("steps=8",),
    "resnet50_imagenet": FEW,
    "dalle_12b": FEW,
}
MICRO = {("clip_vit_b32", "zero1"), ("clip_vit_b32", "zero3"), ("dino_vit_s16", "zero2")}
MICRO |= {("dino_vit_s16", "zero3"), ("dalle_12b", "zero1"), ("dalle_12b", "zero2")}


@pytest.fixture(scope="module", autouse=True)
def package():
    need("deepspeed")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return runs_alone(tmp_path_factory)


@pytest.mark.parametrize(("strategy", "world"), CELLS)
@pytest.mark.parametrize("recipe", OBJECTIVES)
def test_the_run_of_one_process(alone, tmp_path, recipe, strategy, world):
    """Half of the cells in two micro-batches; DINO's with a frozen layer, a clip each, a
    teacher.
    """
    keys = OBJECTIVES[recipe]
    micro = ("system.micro_batch=3",) if (recipe, strategy) in MICRO else ()
    train_on_ranks(tmp_path / "run", world, strategy, *keys, *micro, recipe=recipe)
    assert_same_run(tmp_path / "run", alone(recipe, *keys))


def test_dino_has_what_it_is_here_for():
    run = smoke(recipe="dino_vit_s16")
    assert run.optim.clip_each and run.objective.frozen > 0


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_limits_bite(alone, tmp_path, strategy):
    """What is clamped is the master, and the forward pass reads what came of it."""
    keys = ("steps=8", "objective.scale=20", "objective.scale_limit=14")
    train_on_ranks(tmp_path / "run", 2, strategy, *keys)
    assert_same_run(tmp_path / "run", alone("clip_vit_b32", *keys))


@pytest.mark.parametrize("strategy", ["zero1", "zero3"])
@pytest.mark.parametrize("kind", ["sgd", "lookahead"])
def test_other_optimizers(alone, tmp_path, kind, strategy):
    keys = ("steps=8", f"optim.kind={kind}", "optim.lookahead=3")
    train_on_ranks(tmp_path / "run", 2, strategy, *keys)
    assert_same_run(tmp_path / "run", alone("clip_vit_b32", *keys))


@pytest.mark.parametrize("strategy", ["zero1", "zero3"])
def test_adafactor_is_refused(tmp_path, strategy):
    keys = ("system.world=2", f"system.strategy={strategy}")
    refused = train(tmp_path / "run", *keys, recipe="vit_g14_jft3b", code=2)
    assert "optim.kind=adafactor adds up rows and columns" in refused.stderr


@pytest.mark.parametrize(
    ("strategy", "offload"), [("zero1", "optimizer"), ("zero2", "optimizer"), ("zero3", "all")]
)
def test_what_is_offloaded(alone, tmp_path, strategy, offload):
    """In two micro-batches, whose sums are kept in the host's memory."""
    keys = (f"system.offload={offload}", "system.micro_batch=4")
    train_on_ranks(tmp_path / "run", 2, strategy, "steps=8", *keys, recipe="dino_vit_s16")
    assert_same_run(tmp_path / "run", alone("dino_vit_s16", "steps=8"))


@pytest.mark.parametrize("offload", ["none", "optimizer"])
@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_a_parameter_without_a_gradient(tmp_path, strategy, offload):
    """In a whole step, or in its last micro-batch: the gradient is what the others gave, never
    what a step before has left.
    """
    train_with_gaps(tmp_path / "one", 1, "single")
    train_with_gaps(tmp_path / "run", 2, strategy, f"system.offload={offload}")
    assert_same_run(tmp_path / "run", tmp_path / "one", apart=1e-6)


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_a_step_that_is_skipped(tmp_path, strategy):
    """Twice in a row, in the second of two micro-batches too: nothing of it stays."""
    keys = ("steps=6", "system.micro_batch=4")
    train_poisoned(tmp_path / "one", 1, "single", [2, 3], *keys)
    train_poisoned(tmp_path / "run", 2, strategy, [2, 3], *keys)
    assert sorted(set(skips(tmp_path / "run"))) == [2, 3]
    both = [[x for x in losses(tmp_path / run) if x is not None] for run in ("run", "one")]
    assert len(both[0]) == 4 and both[0] == pytest.approx(both[1], rel=1e-5)


@pytest.mark.parametrize(
    ("strategy", "world"),
    [
        pytest.param("zero1", 3, marks=pytest.mark.full),
        ("zero2", 3),
        ("zero3", 3),
    ],
)
def test_a_run_that_left_goes_on_bit_for_bit(tmp_path, strategy, world):
    keys = ("steps=8", "system.micro_batch=3")
    train_on_ranks(tmp_path / "one", world, strategy, *keys, recipe="dino_vit_s16")
    for leave in (("system.leave_after=3",), ()):
        code = 75 if leave else 0
        train_on_ranks(
            tmp_path / "run", world, strategy, *keys, *leave, recipe="dino_vit_s16", code=code
        )
    assert_same_bits(tmp_path / "run", tmp_path / "one")
    assert losses(tmp_path / "run") == losses(tmp_path / "one")


@pytest.mark.full
@pytest.mark.parametrize("recompute", ["false", "true"])
@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
@pytest.mark.parametrize(
    "recipe", ["siglip_vit_b16", "igpt_s", "dvae_dalle", "virtex_r50", "deit_s16", "vit_b16_masked"]
)
def test_other_objectives(alone, tmp_path, recipe, strategy, recompute):
    train_on_ranks(
        tmp_path / "run", 3, strategy, *FEW, f"system.recompute={recompute}", recipe=recipe
    )
    assert_same_run(tmp_path / "run", alone(recipe, *FEW))


def test_one_process_is_a_world_too(alone, tmp_path):
    train_on_ranks(tmp_path / "run", 1, "zero3", recipe=COLOUR)
    assert_same_run(tmp_path / "run", alone(COLOUR))
