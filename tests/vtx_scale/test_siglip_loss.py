"""SigLIP's loss and gradients over ranks, strategies and micro-batches,
against the plain sum over pairs in float64.
"""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tests.ranks import on_ranks
from tests.vtx_scale.shares import (
    PATTERNS,
    SLOTS,
    alone,
    on_this_rank,
    share,
    whole,
    whole_grads,
)
from vtx_scale.blocks.rules import initial_values, table_of
from vtx_scale.launch.build import build_objective
from vtx_scale.launch.recipes.siglip import siglip_vit_b16, siglip_vit_b16_smoke
from vtx_scale.objectives.siglip import unit
from vtx_scale.specs.run import System

CELLS = [("single", 1), ("ddp", 2), ("ddp", 3), ("fsdp", 2), ("fsdp", 3)]


def recipe(strategy="single", micro=None):
    run = siglip_vit_b16_smoke()
    image = replace(run.objective.image, width=32, mlp=64)
    text = replace(run.objective.text, width=16, mlp=32, embed=32, context=12)
    return replace(
        run,
        objective=replace(run.objective, image=image, text=text, bias=-1.0),
        system=System(
            strategy=strategy, precision="fp64", micro_batch=micro, recompute=micro is not None
        ),
    )


def samples(pattern):
    g = torch.Generator().manual_seed(5)
    data = {
        "image": torch.randint(0, 256, (SLOTS, 32, 32, 3), generator=g, dtype=torch.uint8),
        "tokens": torch.randint(1, 258, (SLOTS, 12), generator=g, dtype=torch.int32),
    }
    return whole(data, pattern)


def brute_force(pattern):
    """Loss and gradients by the definition: a double loop over the valid pairs."""
    objective = alone(recipe())
    batch = samples(pattern)
    x = objective.image(batch["image"][batch.valid].double().permute(0, 3, 1, 2) / 127.5 - 1)
    y = objective.text(batch["tokens"][batch.valid].long())
    n, total = len(x), 0.0
    for i in range(n):
        for j in range(n):
            cosine = (x[i] / (x[i].norm() + 1e-8) * y[j] / (y[j].norm() + 1e-8)).sum()
            z = 1 if i == j else -1
            total = total - F.logsigmoid(
                z * (objective.logit_scale.exp() * cosine + objective.logit_bias)
            )
    (total / n).backward()
    return (total / n).item(), {k: p.grad for k, p in objective.named_parameters()}


def cell(strategy):
    """On a rank: loss, whole gradients and their norm for every micro-batch and mask pattern."""
    out = {}
    for micro in (None, 2):
        wrapped, objective, rank, world = on_this_rank(recipe(strategy, micro))
        for pattern in PATTERNS:
            batch = share(samples(pattern), rank, world)
            total = wrapped.data.sum(objective.count(batch).double())
            with wrapped.micro(last=True):
                part, log = objective(batch, 0)
                wrapped.backward(part / total)
            value = wrapped.data.sum((part / total).detach().clone())
            grads = whole_grads(objective)
            out[micro, pattern] = (
                value.item(),
                grads,
                torch.linalg.vector_norm(wrapped.norms()).item(),
            )
            assert [log[k].item() for k in ("logit_scale", "logit_bias")] == pytest.approx([10, -1])
            objective.zero_grad()
    return out


@pytest.fixture(scope="module")
def expected():
    return {p: brute_force(p) for p in PATTERNS}


@pytest.mark.parametrize(("strategy", "world"), CELLS)
def test_loss_and_gradients_equal_brute_force(expected, strategy, world):
    count = 0
    for rank, found in enumerate(on_ranks(world, cell, strategy)):
        for (micro, pattern), (value, grads, norm) in found.items():
            where = (rank, micro, pattern)
            wanted, wanted_grads = expected[pattern]
            assert value == pytest.approx(wanted, rel=1e-9, abs=1e-9), where
            assert grads.keys() == wanted_grads.keys()
            for name, grad in grads.items():
                error = (
                    (torch.tensor(grad, dtype=torch.float64) - wanted_grads[name])
                    .abs()
                    .max()
                    .item()
                )
                assert error < 1e-9, (*where, name, error)
            whole = math.sqrt(sum(g.square().sum().item() for g in wanted_grads.values()))
            assert norm == pytest.approx(whole, rel=1e-6), where
            count += 1
    assert count == world * 2 * len(PATTERNS)


def test_where_it_starts():
    """Scale 10, bias -10, and the spreads of a ViT in JAX;
    weight decay is for the matrices of dense layers alone.
    """
    from vtx_scale.strategies.single import Single
    from vtx_scale.trainer.init import initialise

    run = siglip_vit_b16()
    spec = replace(
        run.objective,
        image=replace(run.objective.image, depth=1),
        text=replace(run.objective.text, depth=1),
    )
    objective = build_objective(replace(run, objective=spec), torch.float32)
    Single(torch.device("cpu")).prepare(objective)
    initialise(objective, initial_values(objective), 0)
    p = {k: v.detach() for k, v in objective.named_parameters()}
    assert p["logit_scale"].item() == pytest.approx(math.log(10)) and p["logit_bias"].item() == -10
    for name in ("image.positions", "text.positions", "text.embedding.weight", "text.head.weight"):
        assert p[name].std().item() == pytest.approx(768**-0.5, rel=0.02), name
    for name, fan in (
        ("text.blocks.0.attn.qkv.weight", 2 * 768),
        ("image.blocks.0.mlp.fc1.weight", 5 * 768),
        ("image.pool.kv.weight", 2 * 768),
        ("image.pool.q.weight", 2 * 768),
    ):
        assert p[name].abs().max().item() == pytest.approx(math.sqrt(6 / fan), rel=1e-3), name
    assert p["image.pool.probe"].abs().max().item() == pytest.approx(math.sqrt(6 / 769), rel=0.02)
    assert p["text.blocks.0.mlp.fc1.bias"].std().item() == pytest.approx(1e-6, rel=0.1)
    assert not p["text.head.bias"].any() and not p["image.patch.bias"].any()
    rules = table_of(objective)
    decayed = {k for k, v in p.items() if rules[k].decays(v.ndim)}
    assert decayed == {
        k for k in p if k.endswith("weight") and "norm" not in k and "embedding" not in k
    }


def test_unit_of_nothing_is_nothing():
    """x / (|x| + 1e-8): no division by zero, and at least float32."""
    assert unit(torch.zeros(1, 4)).tolist() == [[0.0] * 4]
    assert unit(torch.ones(1, 4, dtype=torch.bfloat16)).dtype == torch.float32
