"""`optim.kind=module:Class`: a user's optimizer trains, stops, and goes on anywhere as ours do."""

import pytest
import torch
from torch import nn

from tests.require import need
from tests.runs import (
    assert_same_bits,
    losses,
    smoke,
    tensors,
    train_on_ranks,
    vtx,
)
from vtx_scale.blocks.rules import Rule, zeros
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.launch.checks import check, check_strategy
from vtx_scale.launch.override import recipe_hash
from vtx_scale.specs.run import Optimizer
from vtx_scale.strategies.base import whole_leaves
from vtx_scale.trainer.optim import optimizer_of

HERE = "tests.vtx_scale.own_optimizers:"
KEYS = ("steps=6", "checkpoint.every=3")
PLACES = [(1, "single"), (2, "fsdp")]
PACKAGED = [(2, "zero1"), (2, "zero3"), (2, "fairscale")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "strategy"),
    [*PLACES, *(pytest.param(*p, marks=pytest.mark.services) for p in PACKAGED)],
)
def test_a_class_that_computes_as_ours_is_ours_to_the_bit(tmp_path, world, strategy):
    if strategy == "fairscale":
        need("fairscale")
    elif strategy.startswith("zero"):
        need("deepspeed")
    for name, kind in (("ours", "adamw"), ("theirs", f"{HERE}Again")):
        train_on_ranks(tmp_path / name, world, strategy, f"optim.kind={kind}", *KEYS)
    assert losses(tmp_path / "ours") == losses(tmp_path / "theirs")
    assert_same_bits(tmp_path / "ours", tmp_path / "theirs")


@pytest.mark.slow
def test_it_goes_on_in_another_world_and_is_averaged(tmp_path):
    keys = (*KEYS, f"optim.kind={HERE}Lion", "optim.average=0.5", "optim.lr=1e-4")
    train_on_ranks(tmp_path / "one", 1, "single", *keys)
    train_on_ranks(tmp_path / "two", 1, "single", *keys, "system.leave_after=3", code=75)
    stopped = tensors(tmp_path / "two")
    assert any(k.startswith("momentum/") and v.abs().sum() > 0 for k, v in stopped.items())
    train_on_ranks(tmp_path / "two", 2, "fsdp", *keys)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    one, two = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    assert one.keys() == two.keys() and any(k.startswith("average/") for k in one)
    train_on_ranks(tmp_path / "here", 1, "single", *keys, "system.leave_after=3", code=75)
    train_on_ranks(tmp_path / "here", 1, "single", *keys)
    assert losses(tmp_path / "here") == losses(tmp_path / "one")
    assert_same_bits(tmp_path / "here", tmp_path / "one")


def optimizer(name: str) -> torch.optim.Optimizer:
    net = nn.Linear(4, 4)
    rules = {name: Rule(name, zeros) for name, _ in net.named_parameters()}
    found = optimizer_of(whole_leaves(net, rules), Optimizer(kind=HERE + name))
    net(torch.randn(3, 4)).square().sum().backward()
    return found


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Row", r"'row' of initial_state is no tensor of shape \(4, 4\)\.$"),
        ("Param", r"'param' of initial_state needs another name\.$"),
        ("Tensored", "keeps the tensor 'size' in its groups: no checkpoint would hold it"),
        (
            "Demanding",
            r"cannot be opened as Class\(groups, lr=, betas=, eps=\): TypeError: .*horizon",
        ),
        ("function", r"\(groups, lr=, betas=, eps=\): AttributeError"),
    ],
)
def test_what_no_checkpoint_could_hold_is_refused(name, says):
    with pytest.raises(UserError, match=f"^optim.kind={HERE}{name}.*{says}"):
        optimizer(name)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Growing", "keeps 'more' of a parameter, which no checkpoint would hold"),
        ("Counting", "changes 'count' of its groups: no checkpoint would hold it"),
    ],
)
def test_a_step_after_which_it_keeps_more_ends_the_run(name, says):
    found = optimizer(name)
    with pytest.raises(UserError, match=f"^optim.kind={HERE}{name} {says}"):
        found.step()


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("adm", "is none of adamw, sgd, lookahead, adafactor, muon: give optim.kind=adam"),
        ("nobody:Lion", "cannot be imported"),
        (f"{HERE}Tiger", "has no 'Tiger'"),
        (f"{HERE}Silent", "give the class a method initial_state"),
    ],
)
def test_what_is_none_is_refused_before_a_run(kind, says):
    with pytest.raises(UserError, match=says):
        check(smoke(f"optim.kind={kind}"))


def test_one_of_whole_tensors_is_refused_where_they_are_cut():
    run = smoke(f"optim.kind={HERE}Normed", "system.strategy=fsdp")
    check_strategy(run, 1)
    with pytest.raises(UserError, match="does not say elementwise = True"):
        check_strategy(run, 2)
    check_strategy(smoke(f"optim.kind={HERE}Normed", "system.strategy=ddp"), 2)
    check_strategy(smoke(f"optim.kind={HERE}Lion", "system.strategy=fsdp"), 2)


@pytest.mark.services
def test_fairscale_cuts_none():
    need("fairscale")
    check_strategy(smoke(f"optim.kind={HERE}Normed", "system.strategy=fairscale"), 2)


def test_it_is_in_the_hash():
    assert recipe_hash(smoke(f"optim.kind={HERE}Lion")) != recipe_hash(smoke())


def test_the_plan_says_what_it_does_not_know():
    done = vtx("plan", "clip_vit_b32", f"optim.kind={HERE}Lion", "--gpus", "8", "--gpu", "h100")
    assert "Traceback" not in done.stderr and "optim.kind" in done.stdout + done.stderr
