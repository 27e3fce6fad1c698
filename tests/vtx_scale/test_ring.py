"""Contrastive losses whose features go round the ranks: the gathered form's numbers, the
definition's, and memory that does not grow with the ranks.
"""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from tests.memory import Bytes
from tests.ranks import gathered, on_ranks
from tests.runs import losses, norms, train_on_ranks
from vtx_scale.distributed.ranks import GroupRanks, Ranks
from vtx_scale.objectives.base import Context
from vtx_scale.objectives.pairs import contrastive_loss

ROWS, EMBED = 12, 5  # of all ranks: 12, 6, 4 or 3 a rank
CHUNKS = (1, 2, 5, 512)  # 5 divides no rank's rows
KINDS = ("softmax", "sigmoid")
PATTERNS = {
    "some masked": [1, 1, 0, 1, 1, 1, 0, 1, 1, 0, 1, 1],
    # at a world of 2, 3 and 4 a rank has nothing but masked rows
    "a rank masked": [0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 1, 1],
    "all valid": [1] * 12,
    "none valid": [0] * 12,
}


def rows(pattern):
    """Features, weights of the rows' losses, and which are valid; of all ranks."""
    g = torch.Generator().manual_seed(3)
    x, y = (torch.randn(ROWS, EMBED, generator=g, dtype=torch.float64) for _ in range(2))
    weight = torch.rand(ROWS, generator=g, dtype=torch.float64) + 0.5
    return F.normalize(x), F.normalize(y), weight, torch.tensor(PATTERNS[pattern], dtype=torch.bool)


def leaves(pattern, at=slice(None)):
    """(features of both kinds, scale, bias) with gradient, and weights and valid rows."""
    x, y, weight, valid = (t[at].clone() for t in rows(pattern))
    scale, bias = (
        torch.tensor([7.0], dtype=torch.float64),
        torch.tensor([-2.5], dtype=torch.float64),
    )
    return [t.requires_grad_() for t in (x, y, scale, bias)], weight, valid


def by_definition(kind, pattern):
    """The weighted sum by a double loop over the valid rows, and its gradients."""
    (x, y, scale, bias), weight, valid = leaves(pattern)
    at, total = valid.nonzero().flatten().tolist(), (x * 0).sum()
    for i in at:
        if kind == "sigmoid":
            for j in at:
                sign = 1 if i == j else -1
                total = (
                    total - weight[i] * F.logsigmoid(sign * (scale * (x[i] @ y[j]) + bias)).sum()
                )
        else:
            for a, b in ((x, y), (y, x)):
                logits = torch.cat([scale * (a[i] @ b[j]) for j in at])
                total = total + weight[i] * (logits.logsumexp(0) - scale * (a[i] @ b[i])).sum() / 2
    return outcome(total, (x, y, scale, bias))


def outcome(total, tensors):
    total.backward()
    grads = [torch.zeros_like(t) if t.grad is None else t.grad for t in tensors]
    return [t.detach().numpy().copy() for t in (total, *grads)]


def on_this_rank(kind, pattern, form, chunk, ranks, monkey):
    """This rank's part of the weighted sum, and gradients; summed over ranks but for features."""
    share = ROWS // ranks.world
    tensors, weight, valid = leaves(pattern, slice(ranks.rank * share, (ranks.rank + 1) * share))
    x, y, scale, bias = tensors
    context = Context(ranks=ranks, contrastive=form)
    monkey.setattr(ranks, "ring_softmax", lambda *a: Ranks.ring_softmax(ranks, *a, chunk))
    monkey.setattr(ranks, "ring_sigmoid", lambda *a: Ranks.ring_sigmoid(ranks, *a, chunk))
    loss = contrastive_loss(x, y, scale, bias if kind == "sigmoid" else None, valid, context)
    total, dx, dy, *rest = outcome((loss * weight).sum(), tensors)
    summed = [ranks.sum(torch.from_numpy(t)).numpy().copy() for t in (total, *rest)]
    return [summed[0], dx, dy, *summed[1:]]


def cell(grouped):
    """On a rank: every kind, pattern, form and chunk."""
    if grouped:
        gathered()
    ranks = GroupRanks() if grouped else Ranks()
    ways = [("gather", 0), *(("ring", c) for c in CHUNKS)]
    with pytest.MonkeyPatch.context() as monkey:
        return {
            (kind, pattern, *way): on_this_rank(kind, pattern, *way, ranks, monkey)
            for kind, pattern, way in itertools.product(KINDS, PATTERNS, ways)
        }


@pytest.mark.parametrize(
    ("world", "grouped"), [(1, False), (1, True), (2, True), (3, True), (4, True)]
)
def test_a_ring_is_the_gathered_form_and_the_definition(world, grouped):
    """Loss, both features' gradients, scale's and bias's, to 1e-9 in float64."""
    found = on_ranks(world, cell, grouped)
    names = ("loss", "image", "text", "scale", "bias")
    for key in found[0]:
        parts = [f[key] for f in found]
        whole = [
            torch.cat([torch.tensor(p[k]) for p in parts])
            if 0 < k < 3
            else torch.tensor(parts[0][k])
            for k in range(len(names))
        ]
        for name, value, wanted in zip(names, whole, by_definition(*key[:2]), strict=True):
            error = (value - torch.tensor(wanted)).abs().max().item()
            assert error < 1e-9, (key, name, error)
    assert len(found[0]) == len(KINDS) * len(PATTERNS) * (1 + len(CHUNKS))


def most_bytes(form, kind, n, embed):
    """On a rank: the peak of forward and backward pass beside the features themselves."""
    gathered()
    g = torch.Generator().manual_seed(0)
    x, y = (F.normalize(torch.randn(n, embed, generator=g)).requires_grad_() for _ in range(2))
    scale, bias = torch.ones(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    valid = torch.ones(n, dtype=torch.bool)
    context = Context(ranks=GroupRanks(), contrastive=form)
    with Bytes() as counted:
        loss = contrastive_loss(x, y, scale, bias if kind == "sigmoid" else None, valid, context)
        loss.sum().backward()
    return counted.most


@pytest.mark.parametrize("kind", KINDS)
def test_memory_of_a_ring_does_not_grow_with_the_ranks(kind):
    """1,024 rows a rank: at most 1.3 times as much on four ranks as on one. The gathered form,
    measured alike, needs three times as much, so that it is seen where memory grows.
    """
    one, four = (max(on_ranks(w, most_bytes, "ring", kind, 1024, 64)) for w in (1, 4))
    assert 0 < four <= 1.3 * one, (one, four)
    one, four = (max(on_ranks(w, most_bytes, "gather", kind, 1024, 64)) for w in (1, 4))
    assert four > 3 * one, (one, four)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "world", "strategy"),
    [("clip_vit_b32", 2, "ddp"), ("siglip_vit_b16", 2, "ddp"), ("clip_vit_b32", 4, "tp")],
)
def test_a_training_by_the_ring_is_the_gathered_one(tmp_path, recipe, world, strategy):
    """Losses and norms within 1e-5; also where the ring is a group of its own, under fsdp over
    copies of tp.
    """
    keys = ["steps=8"]
    if strategy == "tp":
        strategy = "fsdp"
        keys.append("system.tp=2")
    for form in ("gather", "ring"):
        train_on_ranks(
            tmp_path / form, world, strategy, *keys, f"system.contrastive={form}", recipe=recipe
        )
    for numbers in (losses, norms):
        plain, ring = (numbers(tmp_path / form) for form in ("gather", "ring"))
        assert len(plain) == 8 and all(map(math.isfinite, plain))
        assert ring == pytest.approx(plain, rel=1e-5)
    assert losses(tmp_path / "ring") != losses(tmp_path / "gather"), "the ring was not taken"
