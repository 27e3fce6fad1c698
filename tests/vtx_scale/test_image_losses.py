"""Losses and gradients of the image objectives over ranks and strategies,
against loops over single samples in float64.
"""

import math
from dataclasses import replace

import pytest
import torch

from tests.ranks import on_ranks
from tests.vtx_scale.shares import (
    CELLS,
    PATTERNS,
    SLOTS,
    alone,
    on_this_rank,
    share,
    whole,
    whole_grads,
)
from vtx_scale.blocks import random
from vtx_scale.blocks.slots import VIEWS
from vtx_scale.data_pipeline.augment.mixing import mix_parameters
from vtx_scale.launch import recipes
from vtx_scale.objectives.pixels import normalised
from vtx_scale.specs.run import Augment, System

STEP = 3
MIX = Augment(mixup=0.8, mix_share=1.0)
CUT = Augment(cutmix=1.0, mix_share=1.0, repeats=2)


def small(name, **changes):
    """A recipe's smoke size, smaller, in float64 and without what drops."""
    run = recipes.find(name, smoke=True)
    net = replace(
        run.objective.net,
        width=16,
        mlp=32,
        heads=2,
        depth=2,
        patch=16,
        drop_path=0.0,
        dropout=0.0,
        init="xavier",
    )
    return replace(
        run,
        objective=replace(run.objective, net=net, **changes),
        seed=5,
        data=replace(run.data, augment=Augment()),
    )


def teacher():
    from vtx_scale.specs.vit import ViTConfig

    return ViTConfig(width=16, depth=1, mlp=16, heads=2, patch=16, resolution=32, classes=12)


CASES = {
    "softmax": (small("vit_b16_imagenet21k", smoothing=0.1), None),
    "sigmoid": (small("vit_b16_jft", labels=3, head_bias=-1.0), None),
    "softmax, mixup": (small("vit_b16_imagenet21k", smoothing=0.1), MIX),
    "sigmoid, CutMix, two views": (small("vit_b16_jft", labels=3), CUT),
    "hard": (small("deit_s16_distilled", teacher=teacher()), MIX),
    "soft": (
        small("deit_s16_distilled", teacher=teacher(), kind="soft", temperature=3.0, alpha=0.3),
        None,
    ),
    "masked": (small("vit_b16_masked"), None),
    "dino": (small("dino_vit_s16", prototypes=20, hidden=16, bottleneck=8, fixed_gain=False), None),
}


def recipe(case, strategy="single"):
    run, augment = CASES[case]
    if augment is not None:
        run = replace(run, data=replace(run.data, augment=augment))
    return replace(run, system=System(strategy=strategy, precision="fp64"))


def samples(case, pattern):
    g, run = torch.Generator().manual_seed(5), recipe(case)

    def picture(*shape):
        return torch.randint(0, 256, (SLOTS, *shape, 3), generator=g, dtype=torch.uint8)

    labels = torch.rand(SLOTS, 12, generator=g).argsort(1)[:, :3]
    labels[::2, 1:] = -1
    views = (run.data.augment.repeats,) if run.data.augment.repeats > 1 else ()
    data = {"image": picture(*views, 32, 32), "labels": labels, "label": labels[:, 0].clone()}
    if case == "dino":
        data = {"globals": picture(2, 32, 32), "locals": picture(3, 16, 16), "label": labels[:, 0]}
    return whole(data, pattern)


@torch.no_grad()
def shake(objective):
    """No tensor may be zero: heads start there, and would hide what is before them."""
    from vtx_scale.distributed.sharding import box_of, local
    from vtx_scale.trainer.init import keyed_flat

    for name, tensor in [*objective.named_parameters(), *objective.named_buffers()]:
        noise = (
            keyed_flat(f"noise {name}", 0, tensor.numel(), ("normal", 0.1), 0)
            .view(tensor.shape)
            .to(tensor.dtype)
        )
        local(tensor).add_(noise[tuple(slice(a, b) for a, b in box_of(tensor))])


def see(objective, net, picture, kind):
    """One picture (S, S, 3), alone, in evaluation."""
    return net(normalised(picture[None], kind, torch.float64))[0]


def log_softmax(z):
    return z - z.exp().sum().log()


def brute_softmax(objective, batch, i, picture):
    z = log_softmax(see(objective, objective.net, picture, objective.spec.pixels))
    return z, lambda label: -0.9 * z[label] - 0.1 * z.mean()


def brute_sigmoid(objective, batch, i, picture):
    z = see(objective, objective.net, picture, objective.spec.pixels)

    def loss(labels):
        there = set(labels.tolist()) - {-1}
        return sum(-torch.log(torch.sigmoid(z[k] if k in there else -z[k])) for k in range(len(z)))

    return z, loss


def brute_classifier(objective, batch, case):
    """The mean over valid slots of the mean over views,
    mixed with the neighbour where both are valid.
    """
    augment = objective.context.augment
    mix = mix_parameters(
        5, STEP, augment.mixup, augment.cutmix, augment.mix_share, augment.cutmix_share, 32
    )
    images = batch["image"].double()
    images = images if images.ndim == 5 else images[:, None]
    labels, total = batch["labels"] if "sigmoid" in case else batch["label"], 0.0
    for i in batch.valid.nonzero()[:, 0].tolist():
        j = i ^ 1
        pairs = mix.kind != "none" and j < SLOTS and bool(batch.valid[j])
        for v in range(images.shape[1]):
            picture = images[i, v].clone()
            if pairs and mix.kind == "mixup":
                picture = mix.weight * picture + (1 - mix.weight) * images[j, v]
            elif pairs:
                top, left, h, w = mix.box
                picture[top : top + h, left : left + w] = images[
                    j, v, top : top + h, left : left + w
                ]
            shares = [(mix.weight, i), (1 - mix.weight, j)] if pairs else [(1.0, i)]
            total = (
                total
                + one_picture(objective, case, picture, [(s, labels[k]) for s, k in shares])
                / images.shape[1]
            )
    return total / batch.valid.sum()


def one_picture(objective, case, picture, shares):
    spec = objective.spec
    if case in ("hard", "soft"):
        x = normalised(picture[None], spec.pixels, torch.float64)
        tokens = objective.net.norm(objective.net.tokens(x)[-1])[0]
        log_label = log_softmax(objective.net.head(tokens[0]))
        distilled = objective.net.dist_head(tokens[1])
        base = sum(s * (-0.9 * log_label[k] - 0.1 * log_label.mean()) for s, k in shares)
        wanted = see(objective, objective.teacher, picture, spec.teacher_pixels).detach()
        if case == "hard":
            kd = -log_softmax(distilled)[wanted.argmax()]
        else:
            p, q = log_softmax(wanted / 3), log_softmax(distilled / 3)
            kd = 9 * sum(p[k].exp() * (p[k] - q[k]) for k in range(12)) / 12
        return (1 - spec.alpha) * base + spec.alpha * kd
    _, loss = (brute_sigmoid if "sigmoid" in case else brute_softmax)(objective, None, 0, picture)
    return sum(s * loss(labels) for s, labels in shares)


def brute_masked(objective, batch, _):
    net, key, total, P = objective.net, random.step_key(5, STEP), 0.0, 4
    for i in batch.valid.nonzero()[:, 0].tolist():
        number = torch.tensor([i * VIEWS])
        draw, how, where = (
            random.uniform(key, f"/{p}", number, P)[0].tolist() for p in ("chosen", "how", "where")
        )
        chosen = sorted(range(P), key=lambda k: draw[k])[:2]
        x = net.embed(normalised(batch["image"][i][None], "half", torch.float64))[0]
        changed = [
            objective.mask[0, 0]
            if k in chosen and how[k] < 0.8
            else x[int(where[k] * P)]
            if k in chosen and how[k] >= 0.9
            else x[k]
            for k in range(P)
        ]
        y = net.place(torch.stack(changed)[None])
        for block in net.blocks:
            y = block(y)
        z = objective.colours(net.norm(y))[0, 1:]
        for k in chosen:
            r, c = divmod(k, 2)
            patch = (
                batch["image"][i, 16 * r : 16 * r + 16, 16 * c : 16 * c + 16].double().mean((0, 1))
            )
            red, green, blue = (int(m) // 32 for m in patch)
            total = total - log_softmax(z[k])[64 * red + 8 * green + blue] / 2
    return total / batch.valid.sum()


def brute_dino(objective, batch, _):
    spec, total = objective.spec, 0.0
    temperature = spec.warm_temperature + STEP / spec.warm_steps * (
        spec.teacher_temperature - spec.warm_temperature
    )
    sums, count = torch.zeros(20, dtype=torch.float64), 0

    def answer(branch, picture):
        return branch.head(see(objective, branch.net, picture, "imagenet")[None])[0]

    for i in batch.valid.nonzero()[:, 0].tolist():
        crops = [*batch["globals"][i], *batch["locals"][i]]
        for g in range(2):
            raw = answer(objective.teacher, crops[g]).detach()
            sums, count = sums + raw, count + 1
            target = log_softmax((raw - objective.centre) / temperature).exp()
            for v in range(len(crops)):
                if v != g:
                    log_student = log_softmax(answer(objective.student, crops[v]) / 0.1)
                    total = total - (target * log_student).sum() / (2 * (len(crops) - 1))
    return total / batch.valid.sum(), 0.9 * objective.centre + 0.1 * sums / count


def brute_force(case, pattern):
    objective, batch, centre = alone(recipe(case)), samples(case, pattern), None
    shake(objective)
    brute = {"masked": brute_masked, "dino": brute_dino}.get(case, brute_classifier)
    loss = brute(objective, batch, case)
    if case == "dino":
        loss, centre = loss
    loss.backward()
    grads = {k: p.grad for k, p in objective.named_parameters() if p.requires_grad}
    return loss.item(), grads, centre


def cell(strategy):
    return {case: one_case(strategy, case) for case in CASES}


def one_case(strategy, case):
    """On a rank: loss and whole gradients for every mask pattern, and where DINO's centre goes."""
    wrapped, objective, rank, world = on_this_rank(recipe(case, strategy))
    shake(objective)
    out = {}
    for pattern in PATTERNS:
        batch = objective.prepare(share(samples(case, pattern), rank, world), STEP)
        total = wrapped.data.sum(objective.count(batch).double())
        value = 0.0
        # a mean must not hang on the cut
        parts = batch.split(2 if case in ("dino", "softmax, mixup", "masked") else None)
        for k, part in enumerate(parts):
            with wrapped.micro(last=k == len(parts) - 1):
                loss, _ = objective(part, STEP)
                wrapped.backward(loss / total)
            value += (loss / total).detach()
        value = wrapped.data.sum(value.clone())
        grads = whole_grads(objective)
        centre = None
        if case == "dino":
            before = objective.centre.clone()
            objective.update_buffers(STEP)
            centre = objective.centre.tolist()
            objective.centre.copy_(before)
        objective.zero_grad()
        out[pattern] = (value.item(), grads, centre)
    return out


@pytest.fixture(scope="module")
def expected():
    return {(case, p): brute_force(case, p) for case in CASES for p in PATTERNS}


@pytest.mark.parametrize(("strategy", "world"), CELLS)
def test_loss_and_gradients_equal_brute_force(expected, strategy, world):
    count = 0
    for rank, found in enumerate(on_ranks(world, cell, strategy)):
        for case, patterns in found.items():
            for pattern, (value, grads, centre) in patterns.items():
                where = (rank, case, pattern)
                wanted, wanted_grads, wanted_centre = expected[case, pattern]
                assert math.isfinite(wanted) and value == pytest.approx(
                    wanted, rel=1e-9, abs=1e-9
                ), where
                assert grads.keys() == wanted_grads.keys()
                for name, grad in grads.items():
                    known = wanted_grads[name]
                    error = torch.tensor(grad, dtype=torch.float64) - (
                        0 if known is None else known
                    )
                    assert error.abs().max().item() < 1e-9, (*where, name, error.abs().max().item())
                if centre is not None:
                    assert torch.allclose(
                        torch.tensor(centre, dtype=torch.float64), wanted_centre, rtol=0, atol=1e-9
                    ), where
                count += 1
    assert count == world * len(CASES) * len(PATTERNS)
