"""fairscale's OSS and ShardedDataParallel: the run of one process, whoever owns a parameter."""

import pytest

from tests.ranks import gathered, on_ranks
from tests.require import need
from tests.runs import COLOUR, assert_same_bits, losses, smoke, train_on_ranks
from tests.same_run import assert_same_run, runs_alone
from tests.skips import skips, train_poisoned
from tests.vtx_scale.gaps import train_with_gaps
from tests.vtx_scale.sums import after_a_step, assert_covers
from vtx_scale.launch import override

pytestmark = [pytest.mark.services, pytest.mark.slow]

FP64 = ("system.precision=fp64",)  # networks with ReLUs
OBJECTIVES = {
    "clip_vit_b32": (),
    "dino_vit_s16": (),
    "resnet50_imagenet": FP64,
    "dalle_12b": FP64,
}


@pytest.fixture(scope="module", autouse=True)
def package():
    need("fairscale")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return runs_alone(tmp_path_factory)


@pytest.mark.parametrize("recipe", OBJECTIVES)
def test_the_run_of_one_process(alone, tmp_path, recipe):
    """Eight steps on three ranks, two of the four in two micro-batches."""
    keys = ("steps=8", *OBJECTIVES[recipe])
    micro = ("system.micro_batch=3",) if recipe in ("dino_vit_s16", "dalle_12b") else ()
    train_on_ranks(tmp_path / "run", 3, "fairscale", *keys, *micro, recipe=recipe)
    close = (1e-11, 1e-11) if OBJECTIVES[recipe] else (1e-5, 1e-4)
    assert_same_run(tmp_path / "run", alone(recipe, *keys), *close)


@pytest.mark.parametrize("kind", ["sgd", "lookahead"])
def test_other_optimizers(alone, tmp_path, kind):
    keys = ("steps=8", f"optim.kind={kind}", "optim.lookahead=3")
    train_on_ranks(tmp_path / "run", 2, "fairscale", *keys)
    assert_same_run(tmp_path / "run", alone("clip_vit_b32", *keys))


def test_adafactor_sees_whole_matrices(alone, tmp_path):
    train_on_ranks(tmp_path / "run", 2, "fairscale", "steps=8", recipe="vit_g14_jft3b")
    assert_same_run(tmp_path / "run", alone("vit_g14_jft3b", "steps=8"))


def test_adafactor_goes_on_from_its_own_and_from_others(alone, tmp_path):
    """Of a parameter that another rank owns there are the same keys, with nothing in them."""
    keys = ("steps=6", "system.leave_after=2")
    for strategy, world, code in (("fairscale", 2, 75), ("ddp", 2, 75), ("fairscale", 3, 0)):
        train_on_ranks(tmp_path / "run", world, strategy, *keys, recipe="vit_g14_jft3b", code=code)
    assert_same_run(tmp_path / "run", alone("vit_g14_jft3b", "steps=6"))


def test_limits_bite(alone, tmp_path):
    keys = ("steps=8", "objective.scale=20", "objective.scale_limit=14")
    train_on_ranks(tmp_path / "run", 2, "fairscale", *keys)
    assert_same_run(tmp_path / "run", alone("clip_vit_b32", *keys))


def test_a_parameter_without_a_gradient(tmp_path):
    """In a whole step, or in its last micro-batch: what the others gave reaches the owner."""
    train_with_gaps(tmp_path / "one", 1, "single")
    train_with_gaps(tmp_path / "run", 2, "fairscale")
    assert_same_run(tmp_path / "run", tmp_path / "one", apart=1e-6)


def test_a_step_that_is_skipped(tmp_path):
    keys = ("steps=6", "system.micro_batch=4")
    train_poisoned(tmp_path / "one", 1, "single", [2, 3], *keys)
    train_poisoned(tmp_path / "run", 2, "fairscale", [2, 3], *keys)
    assert sorted(set(skips(tmp_path / "run"))) == [2, 3]
    both = [[x for x in losses(tmp_path / run) if x is not None] for run in ("run", "one")]
    assert len(both[0]) == 4 and both[0] == pytest.approx(both[1], rel=1e-5)


def test_a_run_that_left_goes_on_bit_for_bit(tmp_path):
    keys = ("steps=8", "system.micro_batch=3")
    train_on_ranks(tmp_path / "one", 3, "fairscale", *keys, recipe="dino_vit_s16")
    for leave, code in ((("system.leave_after=3",), 75), ((), 0)):
        train_on_ranks(
            tmp_path / "run", 3, "fairscale", *keys, *leave, recipe="dino_vit_s16", code=code
        )
    assert_same_bits(tmp_path / "run", tmp_path / "one")
    assert losses(tmp_path / "run") == losses(tmp_path / "one")


def private_names(recipe: dict) -> tuple[dict[str, int], list[str]]:
    """On a rank: who owns each parameter by `_param_to_rank`, and which parameters differ from rank
    0's values after `_broadcast_params`.
    """
    import torch

    from vtx_scale.launch.build import build_objective
    from vtx_scale.strategies.apply import apply, strategy_of

    run = override.from_dict(recipe)
    rank, world = gathered().get_rank(), gathered().get_world_size()
    strategy = strategy_of(run.system, world, torch.device("cpu"), None)
    objective = build_objective(run, torch.float32)
    apply(objective, strategy, run.system)
    owner = {
        name: strategy.owners._param_to_rank.get(p, -1) for name, p in objective.named_parameters()
    }
    trained = {n: p.detach() for n, p in objective.named_parameters() if p.requires_grad}
    for p in trained.values():
        p.fill_(rank)
    strategy.owners._broadcast_params()
    return owner, [n for n, p in trained.items() if not bool((p == owner[n]).all())]


def test_private_names_do_what_we_think():
    recipe = override.to_dict(smoke("system.strategy=fairscale", recipe="dino_vit_s16"))
    found = on_ranks(2, private_names, recipe)
    owners = [owner for owner, _ in found]
    assert owners[0] == owners[1] and {-1, 0, 1} == set(owners[0].values())
    assert {n for n, who in owners[0].items() if who == -1} == {
        n for n in owners[0] if n.startswith("teacher.")
    }
    assert [wrong for _, wrong in found] == [[], []]


def owned_leaves() -> dict:
    return after_a_step("fairscale")[1]


def test_each_parameter_has_one_owner():
    assert_covers(on_ranks(3, owned_leaves))


def test_one_process_is_a_world_too(alone, tmp_path):
    train_on_ranks(tmp_path / "run", 1, "fairscale", recipe=COLOUR)
    assert_same_run(tmp_path / "run", alone(COLOUR))
