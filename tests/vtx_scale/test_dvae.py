"""The discrete VAE: loss and gradients over ranks against a loop over single numbers in float64;
laws; schedules.
"""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tests.ranks import on_ranks
from tests.vtx_scale.shares import CELLS, PATTERNS, SLOTS, alone, assert_equal, by_pattern, whole
from vtx_scale.backbones import build_network
from vtx_scale.blocks import random
from vtx_scale.blocks.rules import initial_values
from vtx_scale.blocks.slots import VIEWS
from vtx_scale.distributed.ranks import Ranks
from vtx_scale.evaluators.reconstruction import reconstruction
from vtx_scale.launch import recipes
from vtx_scale.objectives.dvae import EPS, divergence, logit_laplace, mapped, unmapped
from vtx_scale.specs.dvae import CodecConfig, half_cosine
from vtx_scale.specs.run import Schedule, System
from vtx_scale.trainer.init import initialise

STEP, SIDE, K = 3, 8, 6


def recipe(strategy="single"):
    run = recipes.find("dvae_dalle", smoke=True)
    net = replace(run.objective.net, width=4, groups=2, blocks=1, vocab=K, stem=5, resolution=SIDE)
    spec = replace(
        run.objective, net=net, kl=2.0, kl_start=0.5, kl_steps=10, temperature_steps=12, average=0.9
    )
    return replace(run, objective=spec, seed=5, system=System(strategy=strategy, precision="fp64"))


def loud(initial):
    return lambda name, shape: ("normal", 0.5)


def samples(pattern):
    g = torch.Generator().manual_seed(5)
    return whole(
        {"image": torch.randint(0, 256, (SLOTS, SIDE, SIDE, 3), generator=g, dtype=torch.uint8)},
        pattern,
    )


def block(b, x):
    y = x
    for conv in b.convs:
        y = F.conv2d(F.relu(y), conv.weight, conv.bias, padding=conv.weight.shape[-1] // 2)
    skip = x if b.skip is None else F.conv2d(x, b.skip.weight, b.skip.bias)
    return skip + y / 4  # (2 groups of 1 block)^2


def brute_force(pattern):
    """By the paper's words, a picture, a place and a channel at a time."""
    objective, batch = alone(recipe(), loud), samples(pattern)
    e, d, total = objective.net.encoder, objective.net.decoder, 0.0
    beta = 2.0 + (0.5 - 2.0) * 0.5 * (1 + math.cos(math.pi * STEP / 10))
    tau = 1 / 16 + (1 - 1 / 16) * 0.5 * (1 + math.cos(math.pi * STEP / 12))
    u = random.uniform(
        random.step_key(5, STEP), "/gumbel", torch.arange(SLOTS) * VIEWS, K, SIDE // 2, SIDE // 2
    ).double()
    for i in batch.valid.nonzero()[:, 0].tolist():
        x = (batch["image"][i].double() / 255 * 0.8 + 0.1).permute(2, 0, 1)[None]
        z = F.conv2d(x, e.input.weight, e.input.bias, padding=3)
        z = F.max_pool2d(block(e.groups[0][0], z), 2)
        z = F.conv2d(F.relu(block(e.groups[1][0], z)), e.output.weight, e.output.bias)[0]
        y, kl = torch.zeros_like(z), 0.0
        for r in range(SIDE // 2):
            for c in range(SIDE // 2):
                q = z[:, r, c].exp() / z[:, r, c].exp().sum()
                kl = kl + sum(q[k] * (q[k] / (1 / K)).log() for k in range(K))
                noisy = ((z[:, r, c] - (-u[i, :, r, c].log()).log()) / tau).exp()
                y[:, r, c] = noisy / noisy.sum()
        o = F.conv2d(y[None], d.input.weight, d.input.bias)
        o = F.interpolate(block(d.groups[0][0], o), scale_factor=2.0, mode="nearest")
        o = F.conv2d(F.relu(block(d.groups[1][0], o)), d.output.weight, d.output.bias)[0]
        nats = 0.0
        for channel in range(3):
            v, mu, b = x[0, channel], o[channel], o[3 + channel].exp()
            f = 1 / (2 * b * v * (1 - v)) * (-((v / (1 - v)).log() - mu).abs() / b).exp()
            nats = nats - f.log().sum()
        total = total + (nats + beta * kl) / (SIDE * SIDE * 3)
    total = total / batch.valid.sum()
    total.backward()
    return total.item(), {k: p.grad for k, p in objective.named_parameters() if p.requires_grad}


def cell(strategy):
    return by_pattern(recipe(strategy), samples, loud, STEP, cut=2)


@pytest.fixture(scope="module")
def expected():
    return {p: brute_force(p) for p in PATTERNS}


@pytest.mark.parametrize(("strategy", "world"), CELLS)
def test_loss_and_gradients_equal_brute_force(expected, strategy, world):
    for rank, found in enumerate(on_ranks(world, cell, strategy)):
        assert_equal(found, expected, rank)


def test_the_law_of_a_channel_is_a_law():
    """Its density over (0, 1) sums to one."""
    x = torch.linspace(0, 1, 2_000_002, dtype=torch.float64)[1:-1]
    for location, log_scale in ((0.3, -1.0), (-2.0, 0.1)):
        out = torch.tensor([location] * 3 + [log_scale] * 3, dtype=torch.float64).view(1, 6, 1, 1)
        nats = logit_laplace(x[:, None, None, None], out[:, [0, 3]].expand(len(x), -1, -1, -1))
        assert torch.trapezoid((-nats).exp(), x).item() == pytest.approx(1, abs=1e-4)


def test_what_is_mapped_comes_back():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    x = mapped(pixels, torch.float64)
    assert x.min() == pytest.approx(EPS) and x.max() == pytest.approx(1 - EPS)
    back = unmapped(torch.cat([torch.logit(x), torch.zeros_like(x)], 1))
    assert torch.allclose(back, pixels.double(), atol=1e-9)


def test_divergence():
    equal, sure = (
        torch.full((1, 7, 1, 1), 1 / 7),
        F.one_hot(torch.tensor([[[2]]]), 7).permute(0, 3, 1, 2).double(),
    )
    assert divergence(equal.log()).item() == pytest.approx(0, abs=1e-6)
    assert divergence(sure.clamp(min=1e-300).log()).item() == pytest.approx(math.log(7))


def test_schedules():
    assert [half_cosine(0, 6.6, s, 5000) for s in (0, 2500, 5000, 9000)] == pytest.approx(
        [0, 3.3, 6.6, 6.6]
    )
    assert half_cosine(1, 1 / 16, 0, 0) == 1 / 16
    big = recipes.find("dvae_dalle")
    rates = [big.optim.lr * big.schedule(s, big.steps) for s in (0, 600_000, 1_200_000, 2_999_999)]
    assert rates == pytest.approx([1e-4, (1e-4 + 1.25e-6) / 2, 1.25e-6, 1.25e-6])
    assert Schedule(length=10)(5, 1000) == pytest.approx(0.5)


def test_probes_and_reconstruction():
    objective = alone(recipe(), loud)
    batch = samples("some masked")
    codes = objective.probes["codes"](batch["image"])
    assert codes.shape == (SLOTS, SIDE // 2, SIDE // 2) and 0 <= codes.min() and codes.max() < K
    back = objective.probes["reconstruct"](batch["image"])
    assert (
        torch.equal(back, objective.probes["decode"](codes)) and back.shape == batch["image"].shape
    )
    scores = reconstruction(objective.probes, [batch], None, Ranks())
    kept = batch.valid
    error = (back - batch["image"].float())[kept].square().mean().sqrt().item()
    assert scores["rmse"] == pytest.approx(error, rel=1e-5) and scores["samples"] == int(kept.sum())
    share_ = torch.bincount(codes[kept].long().flatten(), minlength=K) / codes[kept].numel()
    assert scores["perplexity"] == pytest.approx(
        torch.special.entr(share_).sum().exp().item(), rel=1e-5
    )
    assert scores["codes_used"] == int((share_ > 0).sum())
    assert scores["picture"].shape == (2 * SIDE, min(8, int(kept.sum())) * SIDE, 3)
    two = reconstruction(objective.probes, [batch, batch], None, Ranks())
    assert two["rmse"] == pytest.approx(scores["rmse"]) and two["perplexity"] == pytest.approx(
        scores["perplexity"]
    )


def test_codes_are_looked_up():
    """What shares of 0 and 1 give, to the bit, without making them."""
    spec = CodecConfig(vocab=40, width=8, stem=12, blocks=1)
    net = build_network(spec)
    initialise(net, initial_values(net), 0)
    codes = torch.randint(0, 40, (3, 4, 4), generator=torch.Generator().manual_seed(0))
    shares = F.one_hot(codes, 40).permute(0, 3, 1, 2).float()
    assert torch.equal(net.decoder.of_codes(codes), net.decoder(shares))
