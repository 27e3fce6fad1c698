"""Units that are computed again in the backward pass, whole or but for their products: the same
gradients, for less memory.
"""

import json
from dataclasses import replace

import pytest
import torch

from tests.memory import Bytes
from tests.ranks import on_ranks
from tests.runs import losses, smoke, train_on_ranks
from tests.vtx_scale.shares import PATTERNS, on_this_rank, share, whole_grads
from tests.vtx_scale.test_clip_loss import recipe, samples
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.launch import override
from vtx_scale.launch.build import build_objective
from vtx_scale.launch.checks import check
from vtx_scale.launch.recipes.clip import clip_vit_b32_smoke
from vtx_scale.specs.run import System
from vtx_scale.strategies.apply import apply
from vtx_scale.strategies.single import Single

WAYS = ("none", "selective", "full")


def cell(tower, strategy):
    """On a rank, by way: loss, whole gradients, and the bytes that wait for the backward pass."""
    return {way: one_way(tower, strategy, way) for way in WAYS}


def one_way(tower, strategy, way):
    run = recipe(tower, strategy)
    run = replace(run, system=replace(run.system, recompute=way))
    wrapped, objective, rank, world = on_this_rank(run)
    batch = share(samples(next(iter(PATTERNS))), rank, world)
    with wrapped.micro(last=True):
        with Bytes() as counted:
            loss, _ = objective(batch, 0)
            waiting = counted.live
        wrapped.backward(loss)
    return loss.item(), whole_grads(objective), waiting


@pytest.mark.parametrize(
    ("tower", "world", "strategy"),
    [("softmax", 1, "single"), ("resnet", 1, "single"), ("softmax", 2, "fsdp")],
)
def test_gradients_are_the_same_and_memory_lies_between(tower, world, strategy):
    """Equal to the bit; what waits for the backward pass is least with everything computed again,
    and selectively a part of what it is without.
    """
    for found in on_ranks(world, cell, tower, strategy):
        loss, grads, kept = found["none"]
        assert any(g.any() for g in grads.values())
        for way in WAYS[1:]:
            assert found[way][0] == loss, way
            assert found[way][1].keys() == grads.keys()
            different = [k for k, g in grads.items() if not (found[way][1][k] == g).all()]
            assert not different, (way, different)
        if world == 1:  # a sharded one counts what it has gathered too
            assert 1.1 * found["full"][2] < found["selective"][2] < 0.9 * kept


@pytest.mark.slow
def test_a_training_with_selective_recomputation_is_the_plain_one(tmp_path):
    for way in ("none", "selective"):
        train_on_ranks(tmp_path / way, 2, "tp", "steps=4", f"system.recompute={way}")
    assert losses(tmp_path / "selective") == losses(tmp_path / "none")


def test_words_of_before_are_taken():
    run = clip_vit_b32_smoke()
    for text, wanted in {"true": "full", "False": "none", "selective": "selective"}.items():
        changed = override.override(run, [f"system.recompute={text}"])
        assert changed.system.recompute == wanted
    with pytest.raises(UserError, match="none, full, selective"):
        override.override(run, ["system.recompute=some"])
    assert System(recompute=True).recompute == "full"
    body = override.to_dict(run)
    for old, wanted in ((True, "full"), (False, "none")):
        body["system"]["recompute"] = old
        assert override.from_dict(json.loads(json.dumps(body))).system.recompute == wanted


@pytest.mark.parametrize("precision", ["bf16", "auto"])
def test_micro_batches_that_are_computed_again_keep_nothing_in_mixed_precision(precision):
    """Refused with the recipe where it says so, else where the device decides."""
    keys = ("system.micro_batch=2", "system.recompute=selective", f"system.precision={precision}")
    if precision == "bf16":
        with pytest.raises(UserError, match="system.recompute=selective: this objective"):
            check(smoke(*keys))
        return
    run = smoke(*keys)
    objective = build_objective(run, torch.float32)
    strategy = Single(torch.device("cpu"), run.system, torch.bfloat16)
    with pytest.raises(UserError, match="system.recompute=selective: this objective"):
        apply(objective, strategy, run.system)
