"""iGPT: loss and gradients over ranks against loops over single pixels in float64;
palettes; draws.
"""

import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ranks import on_ranks
from tests.vtx_scale.shares import CELLS, PATTERNS, SLOTS, alone, assert_equal, by_pattern, whole
from vtx_scale.blocks import random
from vtx_scale.blocks.attention import KVCache
from vtx_scale.blocks.slots import VIEWS
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.distributed.ranks import Ranks
from vtx_scale.evaluators.completions import completions
from vtx_scale.launch import override, recipes
from vtx_scale.objectives.igpt import drawn
from vtx_scale.objectives.palette import Palette
from vtx_scale.specs.palette import (
    clusters,
    colours_of,
    count_colours,
    read_palette,
    write_palette,
)
from vtx_scale.specs.run import System

STEP, SIDE = 3, 3
CASES = {"next": "igpt_s", "hidden": "igpt_s_bert", "classes": "igpt_l_finetune"}


def recipe(case, strategy="single"):
    run = recipes.find(CASES[case], smoke=True)
    net = replace(run.objective.net, width=16, heads=2, depth=2, side=SIDE, colours=8)
    spec = replace(
        run.objective, net=net, palette=bytes(range(0, 240, 10)).hex(), generative=0.7, hidden=0.4
    )
    return replace(run, objective=spec, seed=5, system=System(strategy=strategy, precision="fp64"))


def samples(pattern):
    g = torch.Generator().manual_seed(5)
    picture = torch.randint(0, 256, (SLOTS, SIDE, SIDE, 3), generator=g, dtype=torch.uint8)
    return whole({"image": picture, "label": torch.randint(0, 12, (SLOTS,), generator=g)}, pattern)


def loud(initial):
    """No tensor may be zero."""
    return lambda name, shape: ("normal", 0.3) if "norm" not in name else ("ones", 0.0)


def attend(q, k, v, sees):
    """One head: q, k, v (N, D), softmax over what a place sees, in words."""
    out = []
    for i in range(len(q)):
        keys = [j for j in range(len(q)) if sees(i, j)]
        weights = torch.stack([(q[i] * k[j]).sum() / math.sqrt(len(q[i])) for j in keys]).exp()
        out.append(sum(w * v[j] for w, j in zip(weights, keys, strict=True)) / weights.sum())
    return torch.stack(out)


def by_hand(net, tokens, hidden, sees):
    """(N, C) the states of one picture, with no operation of the library but products and sums."""

    def rms(x, gain):
        return x / (x.square().mean(1, keepdim=True) + 1e-5).sqrt() * gain

    x = net.embedding.weight[tokens]
    if hidden is not None:
        x = torch.where(hidden[:, None], torch.zeros_like(x), x)
    if net.start is not None:
        x = torch.cat([net.start[0], x[:-1]])
    x = x + net.positions[0]
    H = net.spec.heads
    for b in net.blocks:
        q, k, v = (rms(x, b.norm1.weight) @ b.attn.qkv.weight.T).chunk(3, 1)
        heads = [attend(*(t.chunk(H, 1)[h] for t in (q, k, v)), sees) for h in range(H)]
        x = x + torch.cat(heads, 1) @ b.attn.proj.weight.T
        y = rms(x, b.norm2.weight) @ b.mlp.fc1.weight.T
        x = x + (y / (1 + (-1.702 * y).exp())) @ b.mlp.fc2.weight.T
    return rms(x, net.norm.weight)


def brute_force(case, pattern):
    """Loss and gradients in float64 on one process."""
    objective, batch = alone(recipe(case), loud), samples(pattern)
    net, total = objective.net, 0.0
    hides = (
        random.uniform(random.step_key(5, STEP), "/hidden", torch.arange(SLOTS) * VIEWS, SIDE**2)
        < 0.4
    )
    table = objective.palette.colours
    for i in batch.valid.nonzero()[:, 0].tolist():
        pixels = batch["image"][i].reshape(-1, 3).tolist()
        tokens = torch.tensor(
            [
                min(
                    range(8),
                    key=lambda c: sum((a - b) ** 2 for a, b in zip(p, table[c], strict=True)),
                )
                for p in pixels
            ]
        )
        hidden = hides[i] if case == "hidden" else None
        states = by_hand(net, tokens, hidden, lambda i, j: case == "hidden" or j <= i)
        logits = states @ net.out.weight.T
        nats = [
            logits[n].exp().sum().log() - logits[n, t]
            for n, t in enumerate(tokens.tolist())
            if hidden is None or hidden[n]
        ]
        loss = sum(nats) / len(nats)
        if case == "classes":
            z = net.head.weight @ states.mean(0)
            loss = 0.7 * loss + z.exp().sum().log() - z[batch["label"][i]]
        total = total + loss
    total = total / batch.valid.sum()
    total.backward()
    return total.item(), {k: p.grad for k, p in objective.named_parameters()}


def cell(strategy):
    return {case: by_pattern(recipe(case, strategy), samples, loud, STEP, cut=2) for case in CASES}


@pytest.fixture(scope="module")
def expected():
    return {case: {p: brute_force(case, p) for p in PATTERNS} for case in CASES}


@pytest.mark.parametrize(("strategy", "world"), CELLS)
def test_loss_and_gradients_equal_brute_force(expected, strategy, world):
    for rank, found in enumerate(on_ranks(world, cell, strategy)):
        for case in CASES:
            assert_equal(found[case], expected[case], rank, case)


def test_a_classifier_has_no_bias_but_in_folders_of_before():
    """What run.json said of a classifier before there was a field for its bias."""
    run = recipe("classes")
    assert "net.head.bias" not in dict(alone(run).named_parameters())
    body = override.to_dict(run)
    assert override.from_dict(body) == run
    for path in ("PixelGPT", "PixelGPTConfig"):
        net = body["objective"]["net"] | {"spec": f"vtx_scale.specs.igpt:{path}"}
        del net["classifier_bias"]
        before = override.from_dict(body | {"objective": body["objective"] | {"net": net}})
        assert before.objective.net == replace(run.objective.net, classifier_bias=True)
        assert alone(before).net.head.bias.shape == (run.objective.net.classes,)
        # nothing else is another: the hashes of runs without a classifier stand
        assert override.from_dict(net | {"classes": 0}) == replace(run.objective.net, classes=0)


def test_the_first_loss_is_the_logarithm_of_the_colours():
    run = recipes.find("igpt_s", smoke=True)
    objective = alone(run)
    loss, _ = objective(
        whole(
            {
                "image": torch.randint(0, 256, (SLOTS, 8, 8, 3), dtype=torch.uint8),
                "label": torch.zeros(SLOTS, dtype=torch.int64),
            },
            "all valid",
        )
    )
    assert loss.item() / SLOTS == pytest.approx(math.log(512), rel=1e-9)


@pytest.fixture(scope="module")
def small():
    return alone(recipe("next"), loud).eval()


def test_the_loss_of_a_picture_is_what_training_adds_up(small):
    batch = samples("some masked")
    with torch.no_grad():
        loss, _ = small(batch, STEP)
    each = small.probes["loss"](batch["image"], batch.ids)
    assert each[batch.valid].sum().item() == pytest.approx(loss.item(), rel=1e-6)


def test_step_by_step_says_what_the_whole_says(small):
    tokens = torch.randint(0, 8, (3, SIDE**2), generator=torch.Generator().manual_seed(0))
    cache = [KVCache(SIDE**2) for _ in small.net.blocks]
    with torch.no_grad():
        steps = [
            small.net.step(tokens[:, i - 1] if i else None, i, cache, 3) for i in range(SIDE**2)
        ]
        torch.testing.assert_close(torch.stack(steps, 1), small.net(tokens), rtol=1e-10, atol=1e-10)


def test_draws_follow_the_model(small):
    """The share of each first colour, and of each second after the commonest first,
    over many draws.
    """
    n = 20_000
    pictures = small.complete(torch.zeros(n, SIDE, SIDE, 3, dtype=torch.uint8), 0).to(torch.uint8)
    tokens = small.palette.tokens(pictures)
    with torch.no_grad():
        first = small.net(tokens[:1])[0, 0].softmax(0)
        share = torch.bincount(tokens[:, 0], minlength=8) / n
        assert (share - first).abs().max() < 4 * (0.25 / n) ** 0.5
        top = int(share.argmax())
        after = tokens[tokens[:, 0] == top]
        second = small.net(after[:1])[0, 1].softmax(0)
        shares = torch.bincount(after[:, 1], minlength=8) / len(after)
        assert (shares - second).abs().max() < 4 * (0.25 / len(after)) ** 0.5


def test_what_is_given_stays_and_a_seed_says_the_rest(small):
    pictures = samples("all valid")["image"]
    known = small.palette.pixels(small.palette.tokens(pictures))
    drawn_ = small.complete(pictures, 7, seed=1).to(torch.uint8)
    assert torch.equal(drawn_.flatten(1, 2)[:, :7], known.flatten(1, 2)[:, :7])
    assert torch.equal(drawn_, small.complete(pictures, 7, seed=1).to(torch.uint8))
    assert not torch.equal(drawn_, small.complete(pictures, 7, seed=2).to(torch.uint8))
    assert torch.equal(
        drawn_[3:5],
        small.complete(torch.cat([pictures[:3], pictures[3:5]]), 7, seed=1).to(torch.uint8)[3:5],
    )
    assert small.training is False and small.complete(pictures, SIDE**2).to(torch.uint8).equal(
        known
    )


def test_completions_are_a_row_each(small):
    """Itself, what was given, four draws that keep the upper half;
    masked slots are drawn with the others and not shown.
    """
    batch = samples("a rank masked")
    scores = completions(small.probes, [batch], None, Ranks())
    rows = (
        torch.from_numpy(scores["picture"])
        .unflatten(0, (4, SIDE))
        .unflatten(2, (6, SIDE))
        .transpose(1, 2)
    )
    first = batch["image"][batch.valid][:4]
    assert scores["samples"] == 4 and torch.equal(rows[:, 0], first)
    half = SIDE // 2
    known = small.palette.pixels(small.palette.tokens(first))
    assert torch.equal(rows[:, 1, :half], first[:, :half]) and (rows[:, 1, half:] == 128).all()
    assert all(torch.equal(rows[:, k, :half], known[:, :half]) for k in range(2, 6))
    nobody = replace(batch, valid=torch.zeros_like(batch.valid))
    assert completions(small.probes, [nobody], None, Ranks()) == {"samples": 0}
    with pytest.raises(UserError, match="causal iGPT"):
        completions({}, [batch], None, Ranks())


def test_a_draw_never_leaves_the_distribution():
    logits = torch.tensor([[-math.inf, 0.0, -math.inf], [0.0, -math.inf, -math.inf]])
    for u in (0.0, 0.5, 1 - 2.0**-24):
        assert drawn(logits, torch.full((2,), u)).tolist() == [1, 0]


def file_of(centres, folder):
    (folder / "p.json").write_text(json.dumps({"clusters": centres}))
    return read_palette(folder / "p.json")


@pytest.mark.parametrize(("colours", "seed"), [(2, 0), (7, 1), (40, 2), (512, 3)])
def test_tokens_of_a_palette_of_numbers_are_the_nearest(colours, seed, tmp_path):
    """In exact arithmetic; of colours that stand twice the first."""
    rng = np.random.default_rng(seed)
    table = rng.uniform(-1, 1, (colours, 3)).tolist()
    palette = Palette(file_of(table + table, tmp_path))
    pixels = rng.integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
    x = ((pixels.reshape(-1, 1, 3) * (1 / 255)).astype(np.float32) - np.float32(0.5)) * 2
    far = ((x.astype(np.longdouble) - np.array(table, np.longdouble)) ** 2).sum(2)
    assert palette.tokens(torch.from_numpy(pixels)).tolist() == [far.argmin(1).tolist()]
    assert palette.centres == [tuple(row) for row in table + table]


def test_what_a_palette_of_numbers_draws_is_rounded(tmp_path):
    palette = Palette(file_of([[-1, 0, 1], [0.1, -0.49, 0.5019]], tmp_path))
    shown = palette.pixels(torch.tensor([[0, 1, 1, 0]]))
    assert shown.dtype == torch.uint8 and shown[0, 0].tolist() == [[0, 128, 255], [140, 65, 191]]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(*[st.floats(-1, 1)] * 3), min_size=1, max_size=9))
def test_the_numbers_of_a_palette_come_back_to_the_bit(centres):
    with tempfile.TemporaryDirectory() as folder:
        palette = file_of(centres, Path(folder))
    assert clusters(palette) == centres and count_colours(palette) == len(centres)
    assert [list(c) for c in colours_of(palette)] == [
        [round(127.5 * (x + 1)) for x in c] for c in centres
    ]


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.integers(0, 2**32 - 1))
def test_tokens_are_the_nearest_colours(colours, seed):
    rng = np.random.default_rng(seed)
    table = np.unique(rng.integers(0, 256, (colours, 3)), axis=0)
    palette = Palette(table.astype(np.uint8).tobytes().hex())
    pixels = rng.integers(0, 256, (2, 6, 6, 3), dtype=np.uint8)
    wanted = ((pixels.reshape(2, 36, 1, 3).astype(int) - table) ** 2).sum(3).argmin(2)
    assert palette.tokens(torch.from_numpy(pixels)).numpy().tolist() == wanted.tolist()
    own = torch.from_numpy(table.astype(np.uint8)).view(1, -1, 1, 3)
    assert palette.tokens(own).tolist() == [list(range(len(table)))]


def test_a_palette_is_read_as_it_was_written(tmp_path):
    colours = [(0, 0, 0), (1, 2, 3), (254, 255, 128)]
    (tmp_path / "palette.json").write_text(write_palette(colours))
    palette = read_palette(tmp_path / "palette.json")
    assert colours_of(palette) == colours
    # as run.json holds them: six digits each, whatever other palettes are
    assert palette == "000000010203feff80" and Palette(palette).centres is None
    assert len(set(colours_of("cube"))) == 512 and colours_of("cube")[0] == (16, 16, 16)


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{}",
        '{"clusters": []}',
        '{"clusters": [[0, 0]]}',
        '{"clusters": [[0, 0, 3]]}',
        '{"clusters": [["a", 0, 0]]}',
        '{"clusters": 3}',
        '{"clusters": [[0, 0, NaN]]}',
        '{"clusters": [[0, 0, Infinity]]}',
    ],
)
def test_what_is_no_palette_is_refused(tmp_path, body):
    (tmp_path / "p.json").write_text(body)
    with pytest.raises(UserError, match="vtx data palette"):
        read_palette(tmp_path / "p.json")


@pytest.mark.parametrize(
    "name", ["nothing", "abc", "required", "", "float64:", "float64:00", "float64:x"]
)
def test_a_name_that_is_no_palette_is_refused(name):
    with pytest.raises(UserError, match="vtx data palette|give the palette's file"):
        colours_of(name)


def test_a_palette_of_another_size_is_refused():
    run = recipe("next")
    with pytest.raises(UserError, match="net.colours=10"):
        override.check(replace(run, objective=replace(run.objective, palette=bytes(30).hex())))
