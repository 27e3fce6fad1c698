"""VirTex: the decoder beside torch's, loss over ranks in float64, Lookahead,
captions and their mirror images.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tests.ranks import on_ranks
from tests.runs import losses, train_on_ranks
from tests.vtx_scale.shares import CELLS, PATTERNS, SLOTS, alone, assert_equal, by_pattern, whole
from vtx_scale.backbones.captioner import Captioner
from vtx_scale.blocks.rules import Rule, table_of, zeros
from vtx_scale.data_pipeline.members import captions
from vtx_scale.data_pipeline.text import tokenizer
from vtx_scale.distributed.ranks import Ranks
from vtx_scale.evaluators.captions import captions as captions_evaluator
from vtx_scale.launch import recipes
from vtx_scale.objectives.pixels import normalised
from vtx_scale.objectives.virtex import backwards
from vtx_scale.objectives.virtex_reader import framed, turned
from vtx_scale.planner.count import parameters
from vtx_scale.specs.resnet import ResNetConfig
from vtx_scale.specs.run import Optimizer, System
from vtx_scale.specs.virtex import VIRTEX_SIZES, VirtexConfig
from vtx_scale.strategies.base import whole_leaves
from vtx_scale.trainer.lookahead import Lookahead
from vtx_scale.trainer.optim import optimizer_of, set_applied, set_rates

FIGURES = {
    "R50-L1-H512": 38_111_568,
    "R50-L1-H768": 51_699_792,
    "R50-L1-H1024": 69_482_320,
    "R50-L1-H2048": 182_555_472,
    "R50-L2-H1024": 103_075_664,
    "R50-L3-H1024": 136_669_008,
    "R50-L4-H1024": 170_262_352,
    "R50w2x-L1-H1024": 112_808_528,
    "R101-L1-H1024": 88_474_448,
}
STEP, T, V = 3, 7, 11
SMALL = VirtexConfig(
    net=ResNetConfig(blocks=(1,), kind="basic", resolution=32),
    width=16,
    depth=2,
    context=T,
    vocab=V,
    dropout=0.0,
    beam=3,
)


@pytest.mark.parametrize("size", VIRTEX_SIZES)
def test_parameters(size):
    assert parameters(VirtexConfig.size(size)) == FIGURES[size]


def theirs_of(layers, heads):
    """torch's decoder with our weights."""
    decoder = nn.TransformerDecoder(
        nn.TransformerDecoderLayer(16, heads, 64, 0.0, "gelu", batch_first=True), len(layers)
    )
    for ours, layer in zip(layers, decoder.layers, strict=True):
        for mine, yours in ((ours.own, layer.self_attn), (ours.map, layer.multihead_attn)):
            yours.in_proj_weight.data = torch.cat([mine.q.weight, mine.kv.weight])
            yours.in_proj_bias.data = torch.cat([mine.q.bias, mine.kv.bias])
            yours.out_proj.load_state_dict(mine.proj.state_dict())
        layer.linear1.load_state_dict(ours.fc1.state_dict())
        layer.linear2.load_state_dict(ours.fc2.state_dict())
        for k in "123":
            getattr(layer, f"norm{k}").load_state_dict(getattr(ours, f"norm{k}").state_dict())
    return decoder.double().eval()


@torch.no_grad()
def test_the_decoder_is_torchs():
    torch.manual_seed(0)
    spec = replace(SMALL, width=16)
    ours = Captioner(spec).double()
    for p in ours.parameters():
        p.copy_(torch.randn_like(p) * 0.3)
    tokens, length = torch.randint(1, V, (3, T)), torch.tensor([T, 4, 2])
    memory = ours.project(torch.randn(3, spec.net.width, 2, 2, dtype=torch.float64))
    padding = torch.arange(T) >= length[:, None]
    x = torch.nn.functional.layer_norm(
        ours.words.weight[tokens] + ours.positions.weight[:T],
        (16,),
        ours.norm.weight,
        ours.norm.bias,
        1e-8,
    ).masked_fill(padding[..., None], 0)
    causal = torch.ones(T, T, dtype=torch.bool).triu(1)
    for back, layers in ((False, ours.forwards), (True, ours.backwards)):
        known = (
            theirs_of(layers, spec.heads)(x, memory, tgt_mask=causal, tgt_key_padding_mask=padding)
            @ ours.words.weight.T
        )
        found = ours(tokens, length, memory, back)
        assert torch.allclose(found[~padding], (known + ours.bias)[~padding], atol=1e-10)


def recipe(strategy="single"):
    run = recipes.find("virtex_r50", smoke=True)
    return replace(run, objective=SMALL, seed=5, system=System(strategy=strategy, precision="fp64"))


def loud(initial):
    return lambda name, shape: (
        ("normal", 0.3)
        if "norm" not in name
        else ("ones" if name.endswith(("weight", "var")) else "zeros", 0.0)
    )


def samples(pattern):
    g = torch.Generator().manual_seed(5)
    length = 2 + torch.arange(SLOTS) % (T - 1)
    tokens = torch.randint(1, V, (SLOTS, T), generator=g)
    tokens[torch.arange(T) >= length[:, None]] = 0
    return whole(
        {
            "image": torch.randint(0, 256, (SLOTS, 32, 32, 3), generator=g, dtype=torch.uint8),
            "tokens": tokens.int(),
            "length": length,
        },
        pattern,
    )


def brute_force(pattern):
    """The batch's statistics by all valid pictures at once;
    then caption by caption, a token at a time.
    """
    objective, batch = alone(recipe(), loud), samples(pattern)
    keep = batch.valid.nonzero()[:, 0]
    part = whole({k: v for k, v in batch.data.items()}, pattern)
    x = normalised(batch["image"][keep], "imagenet", torch.float64)
    slots = objective.context.slots(part, STEP)
    slots = replace(slots, valid=slots.valid[keep], number=slots.number[keep])
    maps = objective.net.pyramid(x, slots)[-1]
    text, total, count = objective.text, 0.0, 0
    for m, i in zip(maps, keep.tolist(), strict=True):
        words = batch["tokens"][i][: int(batch["length"][i])].long()
        memory = text.project(m[None])
        for back, ids in ((False, words), (True, words.flip(0))):
            for t in range(1, len(ids)):
                z = text(ids[None, :t], torch.tensor([t]), memory, back)[0, -1]
                total = total + z.exp().sum().log() - z[ids[t]]
        count += len(words) - 1
    total = total / count
    total.backward()
    return total.item(), {k: p.grad for k, p in objective.named_parameters()}


def cell(strategy):
    return by_pattern(recipe(strategy), samples, loud, STEP)


@pytest.fixture(scope="module")
def expected():
    return {p: brute_force(p) for p in PATTERNS}


@pytest.mark.parametrize(("strategy", "world"), CELLS)
def test_loss_and_gradients_equal_brute_force(expected, strategy, world):
    for rank, found in enumerate(on_ranks(world, cell, strategy)):
        assert_equal(found, expected, rank)


def test_groups_of_the_recipe():
    """The trunk has its own rate; norms and biases of the textual transformer are not decayed,
    all else is.
    """
    run = recipes.find("virtex_r50", smoke=True)
    objective = alone(run).float()
    optim = replace(run.optim, lr=1e-3, trunk_lr=0.2, decay=1e-4)
    optimizer = optimizer_of(whole_leaves(objective, table_of(objective)), optim)
    set_rates(optimizer, optim, 5e-4, 3, 10)
    names = {id(p): n for n, p in objective.named_parameters()}
    for group in optimizer.param_groups:
        for p in group["params"]:
            name = names[id(p)]
            assert group["lr"] == pytest.approx(0.1 if name.startswith("net.") else 5e-4), name
            plain = name.startswith(("text.forwards", "text.backwards", "text.norm")) and p.ndim < 2
            assert group["weight_decay"] == (0 if plain else 1e-4), name


def test_lookahead_is_sgd_with_slow_weights():
    """Beside a loop in plain arithmetic; values that come after the optimizer was made count from
    the first step.
    """
    g = torch.Generator().manual_seed(0)
    p = nn.Parameter(torch.randn(5, generator=g, dtype=torch.float64))
    holder = nn.ParameterDict({"w": p})
    rules = {"w": Rule("w", zeros, decay=True)}
    optimizer = optimizer_of(
        whole_leaves(holder, rules),
        Optimizer(kind="lookahead", lr=0.1, betas=(0.9, 0.999), decay=0.01),
    )
    assert isinstance(optimizer, Lookahead)
    with torch.no_grad():
        p.add_(1)
    set_rates(optimizer, Optimizer(kind="lookahead", lr=0.1, decay=0.01), 0.1, 0, 1)
    fast, slow, momentum = p.detach().clone(), p.detach().clone(), torch.zeros_like(p)
    for step in range(1, 13):
        p.grad = torch.randn(5, generator=g, dtype=torch.float64)
        momentum = 0.9 * momentum + p.grad + 0.01 * fast
        fast = fast - 0.1 * momentum
        if step % 5 == 0:
            fast = slow = slow + 0.5 * (fast - slow)
        set_applied(optimizer, step - 1)
        optimizer.step()
        assert torch.allclose(p, fast, atol=1e-12) and torch.allclose(
            optimizer.state[p]["slow"], slow, atol=1e-12
        )


def test_tokens_are_framed_and_reversed():
    words = tokenizer("bytes")
    sample = framed(words, "ab", 6)
    assert sample["tokens"].tolist() == [256, 97, 98, 257, 0, 0] and sample["length"] == 4
    assert framed(words, "abcdef", 4)["tokens"].tolist() == [256, 97, 98, 99], (
        "what is cut off takes the end along"
    )
    back = backwards(
        torch.tensor([[256, 97, 98, 257, 0, 0], [256, 97, 98, 99, 100, 101]]), torch.tensor([4, 6])
    )
    assert back.tolist() == [[257, 98, 97, 256, 0, 0], [101, 100, 99, 98, 97, 256]]


def test_a_mirrored_caption():
    assert turned("a circle left of a Right square") == "a circle right of a Left square"
    assert turned("LEFT behind, upright and leftover") == "right behind, upright and leftover"


def test_several_captions_of_a_picture():
    assert captions({"json": b'{"captions": ["a", "b"]}'}) == ["a", "b"]
    assert captions({"txt": b"c", "json": b'{"captions": []}'}) == ["c"] and captions(
        {"json": b'{"caption": "d"}'}
    ) == ["d"]


@torch.no_grad()
def test_beam_search_finds_the_likeliest():
    """With a beam as wide as all prefixes it is exhaustive search: every caption of up to three
    words of which each may follow the one before it, scored whole.
    """
    objective, memories = writer(beam=64)
    for memory in memories:
        best = (-math.inf, [])

        def grow(words, score, memory=memory):
            nonlocal best
            if words[-1] == END or len(words) == 4:
                if score > best[0]:
                    best = score, words + [0] * (4 - len(words))
                return
            for w, log in following(objective, memory, words, 5):
                grow([*words, w], score + log)

        grow([START], 0.0)
        assert objective.written(memory, START, END).tolist() == best[1]


@torch.no_grad()
@pytest.mark.parametrize("beam", [1, 2, 3, 5])
def test_beam_search_is_the_authors(beam):
    """Beside it in lists: every caption of the beam is continued by its two likeliest words, never
    by its last one, and the likeliest stay; one that has ended stays as it is.
    """
    objective, memories = writer(beam=beam)
    twice = 0
    for memory in memories:
        kept = [(0.0, [START])]
        for _ in range(3):
            longer = []
            for score, words in kept:
                if words[-1] == END:
                    longer.append((score, words))
                    continue
                next_words = following(objective, memory, words, beam)
                longer += [(score + log, [*words, w]) for w, log in next_words]
                free = logs(objective, memory, words)
                twice += len(words) > 1 and max(free, key=free.get) == words[-1]
            kept = sorted(longer, key=lambda c: -c[0])[:beam]
        best = kept[0][1]
        assert objective.written(memory, START, END).tolist() == best + [0] * (4 - len(best))
    assert twice, "no caption would have said a word again"


START, END = 3, 4


def writer(beam):
    """An objective that writes captions of up to three of five words, and maps to write of."""
    torch.manual_seed(0)
    spec = replace(SMALL, vocab=5, context=4, beam=beam, depth=1, directions="forward")
    objective = alone(replace(recipe(), objective=spec), loud)
    return objective, torch.randn(12, 1, 4, 16, dtype=torch.float64)


def logs(objective, memory, words):
    """Word -> its logarithm behind the others."""
    log = objective.text(torch.tensor([words]), torch.tensor([len(words)]), memory)[0, -1]
    return dict(enumerate(log.log_softmax(0).tolist()))


def following(objective, memory, words, first):
    """The words that may come next with their logarithms: `first` at the start, else two."""
    log = logs(objective, memory, words)
    if len(words) > 1:
        del log[words[-1]]
    count = first if len(words) == 1 else 2
    return sorted(log.items(), key=lambda x: -x[1])[:count]


def test_biases_start_as_torch_makes_them():
    """Uniform by what comes into a layer, zero in attention; weights N(0, 0.02)."""
    width, channels = 64, 512
    net = replace(SMALL.net, blocks=(1, 1, 1, 1))
    spec = replace(SMALL, net=net, width=width, vocab=4_000)
    values = dict(alone(replace(recipe(), objective=spec)).named_parameters())
    assert values["text.projection.weight"].shape == (width, channels)
    for name, bound in {
        "text.bias": width**-0.5,
        "text.projection.bias": channels**-0.5,
        "text.forwards.0.fc1.bias": width**-0.5,
        "text.backwards.0.fc2.bias": (4 * width) ** -0.5,
    }.items():
        values_ = values[name].detach()
        assert bound * 0.85 < values_.abs().max() <= bound and values_.unique().numel() > 60, name
        assert values_.std().item() == pytest.approx(bound / 3**0.5, rel=0.15), name
    assert values["text.projection.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert not values["text.forwards.0.own.q.bias"].any()


def test_captions_are_compared():
    batch = samples("some masked")
    right = batch["tokens"].long()
    wrong = right.clone()
    wrong[0, 1] = (wrong[0, 1] + 1) % V
    scores = captions_evaluator({"caption_ids": lambda x: wrong}, [batch], None, Ranks())
    kept = int(batch.valid.sum())
    assert scores["exact"] == pytest.approx((kept - 1) / kept) and scores["samples"] == kept
    assert (
        captions_evaluator({"caption_ids": lambda x: right}, [batch], None, Ranks())["exact"] == 1
    )
    assert np.isclose(scores["right"], 1 - 1 / int(batch["length"][batch.valid].sum()))


@pytest.mark.slow
def test_lookahead_goes_on_where_some_parameters_rested(tmp_path):
    """DINO's last layer rests at first: its slow weights count its own steps."""
    keys = ("steps=8", "optim.kind=lookahead", "optim.lookahead=3")
    train_on_ranks(tmp_path / "one", 1, "single", *keys, recipe="dino_vit_s16")
    leave = "system.leave_after=5"
    train_on_ranks(tmp_path / "two", 1, "single", *keys, leave, recipe="dino_vit_s16", code=75)
    train_on_ranks(tmp_path / "two", 1, "single", *keys, recipe="dino_vit_s16")
    assert losses(tmp_path / "one") == losses(tmp_path / "two")
