"""CLIP's loss and gradients over ranks, strategies and micro-batches,
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
    assert_equal,
    by_pattern,
    on_this_rank,
    share,
    whole,
    whole_grads,
)
from vtx_scale.blocks.slots import with_running_statistics
from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.launch.recipes.clip import clip_rn50_smoke, clip_vit_b32_smoke
from vtx_scale.specs.run import System

# loss (or image tower), micro-batch
WAYS = [("softmax", None), ("softmax", 2), ("sigmoid", None), ("resnet", None)]
CELLS = [
    ("single", 1),
    ("ddp", 1),
    ("ddp", 2),
    ("ddp", 3),
    ("ddp", 4),
    ("fsdp", 1),
    ("fsdp", 2),
    ("fsdp", 3),
    pytest.param("fsdp", 4, marks=pytest.mark.full),
    ("hsdp", 2),
    ("hsdp", 4),
]


def recipe(loss, strategy="single", micro=None):
    run = clip_rn50_smoke() if loss == "resnet" else clip_vit_b32_smoke()
    if loss == "resnet":
        image = replace(run.objective.image, stem=2, heads=2, resolution=32, embed=16)
    else:
        image = replace(run.objective.image, width=32, heads=2, mlp=64, depth=2)
    text = replace(run.objective.text, width=32, heads=2, depth=2, context=16)
    return replace(
        run,
        objective=replace(
            run.objective,
            image=image,
            text=text,
            embed=16,
            loss="sigmoid" if loss == "sigmoid" else "softmax",
        ),
        system=System(
            strategy=strategy,
            precision="fp64",
            micro_batch=micro,
            recompute=micro is not None or loss == "resnet",
        ),
    )


def values(initial):
    """Initial values by which every parameter of a ResNet has a gradient."""
    return lambda name, shape: (
        ("constant", 0.7) if name.endswith("norm3.weight") else initial(name, shape)
    )


def samples(pattern):
    g = torch.Generator().manual_seed(5)
    tokens = torch.randint(1, 250, (SLOTS, 16), generator=g, dtype=torch.int32)
    tokens[:, 9] = 257
    data = {
        "image": torch.randint(0, 256, (SLOTS, 32, 32, 3), generator=g, dtype=torch.uint8),
        "tokens": tokens,
    }
    return whole(data, pattern)


def brute_force(loss, pattern):
    """Loss and gradients by the definition: a double loop over the valid pairs."""
    objective = alone(recipe(loss), values)
    batch = samples(pattern)
    data = {k: v[batch.valid] for k, v in batch.data.items()}
    images = [data["image"]]
    # its statistics are then those of the valid rows, which test_batch_norm compares with torch's
    if loss == "resnet":
        kept = Batch(
            data,
            batch.valid[batch.valid],
            *(v[batch.valid] for v in (batch.ids, batch.epoch, batch.slot)),
        )
        images.append(objective.context.slots(kept, 0))
    x, y = objective.encode_image(*images), objective.encode_text(data["tokens"])
    scale, n, total = objective.logit_scale.exp(), len(x), 0.0
    for i in range(n):
        if loss != "sigmoid":
            for a, b in ((x, y), (y, x)):
                logits = [scale * (a[i] * b[j]).sum() for j in range(n)]
                total = total - (logits[i] - torch.cat(logits).logsumexp(0)) / 2
        else:
            for j in range(n):
                z = 1 if i == j else -1
                total = total - F.logsigmoid(
                    z * (scale * (x[i] * y[j]).sum() + objective.logit_bias)
                )
    (total / n).backward()
    for m in with_running_statistics(objective):
        m.update_statistics()
    return (total / n).item(), {
        **{k: p.grad for k, p in objective.named_parameters()},
        **dict(objective.named_buffers()),
    }


def cell(strategy):
    """On a rank: loss, whole gradients and their norm for every way and mask pattern."""
    return {way: one_way(strategy, *way) for way in WAYS}


def one_way(strategy, loss, micro):
    wrapped, objective, rank, world = on_this_rank(recipe(loss, strategy, micro), values)
    start = {k: b.clone() for k, b in objective.named_buffers()}
    out = {}
    for pattern in PATTERNS:
        batch = share(samples(pattern), rank, world)
        total = wrapped.data.sum(objective.count(batch).double())
        with wrapped.micro(last=True):
            part, _ = objective(batch, 0)
            wrapped.backward(part / total)
        value = wrapped.data.sum((part / total).detach().clone())
        grads = whole_grads(objective)
        norm = torch.linalg.vector_norm(wrapped.norms()).item()
        objective.zero_grad()
        for m in with_running_statistics(objective):
            m.update_statistics()
        for k, b in objective.named_buffers():  # running statistics: compared like gradients
            grads[k] = b.numpy().copy()
            b.copy_(start[k])
        out[pattern] = (value.item(), grads, norm)
    return out


@pytest.fixture(scope="module")
def expected():
    return {
        (loss, p): brute_force(loss, p)
        for loss in ("softmax", "sigmoid", "resnet")
        for p in PATTERNS
    }


@pytest.mark.parametrize(("strategy", "world"), CELLS)
def test_loss_and_gradients_equal_brute_force(expected, strategy, world):
    count = 0
    for rank, found in enumerate(on_ranks(world, cell, strategy)):
        for (loss, micro), patterns in found.items():
            for pattern, (value, grads, norm) in patterns.items():
                where = (rank, loss, micro, pattern)
                wanted, wanted_grads = expected[loss, pattern]
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
                length = math.sqrt(
                    sum(
                        g.square().sum().item()
                        for k, g in wanted_grads.items()
                        if "running" not in k
                    )
                )
                assert norm == pytest.approx(length, rel=1e-6), where
                count += 1
    assert count == world * len(WAYS) * len(PATTERNS)


def dropped(strategy, micro):
    """On a rank: as `by_pattern`, of towers that drop a part of their numbers."""
    run = recipe("softmax", strategy, micro)
    image = replace(run.objective.image, dropout=0.2, drop_path=0.4)
    return by_pattern(
        replace(run, objective=replace(run.objective, image=image)), samples, values, step=3
    )


@pytest.mark.parametrize(("strategy", "world", "micro"), [("ddp", 2, 2), ("fsdp", 3, 1)])
def test_what_a_tower_drops_belongs_to_the_slot(strategy, world, micro):
    """Not to its place in a micro-batch or on a rank."""
    (one,) = on_ranks(1, dropped, "ddp", None)
    known = {
        p: (value, {k: torch.tensor(g, dtype=torch.float64) for k, g in grads.items()})
        for p, (value, grads) in one.items()
    }
    for found in on_ranks(world, dropped, strategy, micro):
        assert_equal(found, known, strategy)
    (plain,) = on_ranks(1, cell, "ddp")
    assert plain["softmax", None]["all valid"][0] != pytest.approx(known["all valid"][0], rel=1e-3)
