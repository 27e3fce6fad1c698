"""DALL-E: patterns of attention as defined, loss and gradients over ranks against dense float64,
draws, dropped merges.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.ranks import on_ranks
from tests.vtx_scale.shares import CELLS, PATTERNS, SLOTS, alone, assert_equal, by_pattern, whole
from vtx_scale.backbones.dalle import Attention, kind_of, sees
from vtx_scale.data_pipeline.text import tokenizer
from vtx_scale.data_pipeline.tools.tokenizer import train_tokenizer
from vtx_scale.distributed.ranks import Ranks
from vtx_scale.evaluators.loss import loss as loss_evaluator
from vtx_scale.evaluators.samples import samples as samples_evaluator
from vtx_scale.launch import recipes
from vtx_scale.objectives.dalle_reader import framed
from vtx_scale.objectives.dvae import mapped
from vtx_scale.planner.count import parameters
from vtx_scale.specs.dalle import TextToCodesConfig
from vtx_scale.specs.run import System

STEP, T, G, V, K = 3, 5, 4, 9, 6
SPEC = TextToCodesConfig(width=16, heads=2, depth=4, context=T, grid=G, vocab=V, codes=K, reach=1)


@pytest.mark.parametrize(
    ("size", "count"), [("2.8B", 2_928_262_656), ("5.6B", 5_685_004_800), ("12B", 12_292_840_960)]
)
def test_parameters(size, count):
    assert parameters(TextToCodesConfig.size(size)) == count


def test_a_step_reads_what_its_place_sees_and_no_more(monkeypatch):
    """The keys of the text and of the pattern, as they were kept; layer by layer and place by
    place.
    """
    net = alone(recipe()).net
    read = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def counted(q, k, v, **how):
        assert how.get("attn_mask") is None
        read.append((k.clone(), v.clone()))
        return attend(q, k, v, **how)

    monkeypatch.setattr("vtx_scale.backbones.dalle.F.scaled_dot_product_attention", counted)
    with torch.no_grad():
        cache = net.prefill(torch.ones(2, T, dtype=torch.int64), torch.zeros(2, T).bool())
        for place in range(G * G):
            read.clear()
            net.step(torch.tensor([place % K] * 2) if place else None, place, cache, 2)
            for (k, v), block, kept in zip(read, net.blocks, cache, strict=True):
                row = sees(block.attn.kind, G, net.spec.reach)[place]
                keys = torch.cat([torch.arange(1 + T), 1 + T + row.nonzero()[:, 0]])
                assert torch.equal(k, kept.k[:, :, keys]) and torch.equal(v, kept.v[:, :, keys])


def test_layers():
    kinds = [kind_of(i, 64) for i in range(1, 65)]
    assert [i + 1 for i, k in enumerate(kinds) if k == "column"] == list(range(2, 63, 4))
    assert [i + 1 for i, k in enumerate(kinds) if k == "conv"] == [64] and kinds.count("row") == 47


@pytest.mark.parametrize(
    ("kind", "pairs"), [("row", 328_304), ("column", 311_936), ("conv", 352_209)]
)
def test_patterns_have_the_published_pairs(kind, pairs):
    """Of 256 text and 1,024 code places; and each pattern a place at a time, by its definition."""
    pattern = sees(kind, 32, 5)
    assert int(pattern.sum()) + 256 * 257 // 2 + 1024 * 256 == pairs
    for i in (0, 1, 31, 32, 33, 500, 1023):
        if kind == "row":
            wanted = {j for j in range(i - 32, i + 1)}
        elif kind == "column":
            wanted = {j for j in range(i + 1) if j % 32 == i % 32}
        else:
            wanted = {i - 32 * a - b for a in range(6) for b in range(-5, 6) if a or b >= 0}
        assert set(pattern[i].nonzero()[:, 0].tolist()) == {j for j in wanted if j >= 0}
        assert torch.equal(sees(kind, 32, 5, place=i)[0], pattern[i])


def dense_mask(kind):
    mask = torch.zeros(1 + T + G * G, 1 + T + G * G, dtype=torch.bool)
    mask[: 1 + T, : 1 + T] = torch.ones(1 + T, 1 + T).tril().bool()
    mask[1 + T :, : 1 + T] = True
    mask[1 + T :, 1 + T :] = sees(kind, G, SPEC.reach)
    return mask


def dense(attention, x):
    """The same attention by all pairs and a mask."""
    q, k, v = attention.qkv(x).view(*x.shape[:2], 3, 2, 8).permute(2, 0, 3, 1, 4)
    score = (q @ k.transpose(-1, -2)) / math.sqrt(8)
    share_ = score.masked_fill(~dense_mask(attention.kind), -math.inf).softmax(-1)
    return attention.proj((share_ @ v).transpose(1, 2).reshape(x.shape))


@pytest.mark.parametrize("kind", ["row", "column", "conv"])
@pytest.mark.parametrize(("grid", "reach"), [(4, 1), (3, 5), (6, 2), (5, 0)])
def test_sparse_attention_is_the_dense_one_with_a_mask(kind, grid, reach):
    spec = replace(SPEC, grid=grid, reach=reach)
    torch.manual_seed(0)
    sparse, N = Attention(spec, kind).double(), 1 + T + grid * grid
    x = torch.randn(2, N, 16, dtype=torch.float64, requires_grad=True)
    mask = torch.zeros(N, N, dtype=torch.bool)
    mask[: 1 + T, : 1 + T] = torch.ones(1 + T, 1 + T).tril().bool()
    mask[1 + T :, : 1 + T] = True
    mask[1 + T :, 1 + T :] = sees(kind, grid, reach)
    q, k, v = sparse.qkv(x).view(2, N, 3, 2, 8).permute(2, 0, 3, 1, 4)
    known = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    known = sparse.proj(known.transpose(1, 2).reshape(2, N, 16))
    weigh = torch.randn(2, N, 16, dtype=torch.float64)
    (wanted,) = torch.autograd.grad((known * weigh).sum(), x)
    found = sparse(x)
    (gradient,) = torch.autograd.grad((found * weigh).sum(), x)
    assert torch.allclose(found, known, atol=1e-12) and torch.allclose(gradient, wanted, atol=1e-12)


def recipe(strategy="single"):
    run = recipes.find("dalle_12b", smoke=True)
    codec = replace(run.objective.codec, width=4, groups=2, vocab=K, stem=5, resolution=2 * G)
    return replace(
        run,
        objective=replace(run.objective, net=SPEC, codec=codec, codec_from=""),
        seed=5,
        system=System(strategy=strategy, precision="fp64"),
    )


def loud(initial):
    return lambda name, shape: ("normal", 0.3) if "norm" not in name else ("ones", 0.0)


def samples(pattern):
    g = torch.Generator().manual_seed(5)
    lengths = torch.arange(SLOTS) % (T + 1)
    tokens = torch.randint(0, V - 1, (SLOTS, T), generator=g)
    tokens[torch.arange(T) >= lengths[:, None]] = V - 1
    return whole(
        {
            "image": torch.randint(
                0, 256, (SLOTS, 2 * G, 2 * G, 3), generator=g, dtype=torch.uint8
            ),
            "tokens": tokens.int(),
            "length": lengths,
        },
        pattern,
    )


def brute_force(pattern):
    """Sample by sample, with dense attention."""
    objective, batch, total = alone(recipe(), loud), samples(pattern), 0.0
    net = objective.net
    for i in batch.valid.nonzero()[:, 0].tolist():
        codes = (
            objective.codec.encoder(mapped(batch["image"][i : i + 1], torch.float64))
            .argmax(1)
            .flatten()
            .tolist()
        )
        tokens, length = batch["tokens"][i].tolist(), int(batch["length"][i])
        x = [net.starts[0, 0]]
        for p, token in enumerate(tokens):
            x.append(
                (net.text.weight[token] if p < length else net.padding[0, p])
                + net.text_positions[0, p]
            )
        x.append(net.starts[0, 1])
        for p, code in enumerate(codes[:-1]):
            x.append(net.code.weight[code] + net.rows[0, p // G, 0] + net.columns[0, 0, p % G])
        x = torch.stack(x)[None]
        for b in net.blocks:
            x = x + dense(b.attn, b.norm1(x))
            x = x + b.mlp(b.norm2(x))
        x = net.norm(x)[0]

        def mean_nats(states, layer, wanted):
            z = states @ layer.weight.T + layer.bias
            return sum(z[n].exp().sum().log() - z[n, t] for n, t in enumerate(wanted)) / len(wanted)

        total = (
            total
            + mean_nats(x[:T], net.text_out, tokens) / 8
            + mean_nats(x[T + 1 :], net.code_out, codes) * 7 / 8
        )
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
        assert not any(name.startswith("codec") for _, grads in found.values() for name in grads)


@pytest.fixture(scope="module")
def small():
    return alone(recipe(), loud).eval()


def test_step_by_step_says_what_the_whole_says(small):
    batch = samples("all valid")
    tokens, unused = batch["tokens"].long(), small.unused(batch["length"])
    codes = torch.randint(0, K, (SLOTS, G * G), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        cache = small.net.prefill(tokens, unused)
        steps = [
            small.net.step(codes[:, i - 1] if i else None, i, cache, SLOTS) for i in range(G * G)
        ]
        torch.testing.assert_close(
            torch.stack(steps, 1), small.net(tokens, unused, codes)[1], rtol=1e-10, atol=1e-10
        )


def test_a_seed_and_a_place_say_the_picture(small):
    batch = samples("all valid")
    texts = batch["tokens"], batch["length"]
    pictures = small.probes["sample"](texts, seed=1)
    assert pictures.shape == (SLOTS, 2 * G, 2 * G, 3) and torch.equal(
        pictures, small.probes["sample"](texts, seed=1)
    )
    assert not torch.equal(pictures, small.probes["sample"](texts, seed=2))
    assert torch.equal(pictures[:3], small.probes["sample"](tuple(t[:3] for t in texts), seed=1))
    cold = [small.probes["sample"](texts, seed=s, temperature=1e-6) for s in (1, 2)]
    assert torch.equal(*cold), "without temperature the likeliest codes are drawn"


@torch.no_grad()
def test_the_loss_of_a_sample_is_what_training_adds_up(small):
    """The probe's numbers, weighted as in training; text and codes differ by far."""
    batch = samples("some masked")
    loss, log = small(batch, STEP)
    each = small.probes["loss"](batch["image"], batch.ids, batch["tokens"], batch["length"])
    assert each.shape == (SLOTS,)
    assert each[batch.valid].sum().item() == pytest.approx(loss.item(), rel=1e-6)
    assert abs(log["text_nats"] - log["code_nats"]) > 0.1
    scores = loss_evaluator(small.probes, [batch, batch], None, Ranks())
    count = int(batch.valid.sum())
    assert scores == {"loss": pytest.approx(loss.item() / count, rel=1e-6), "samples": 2 * count}


def test_samples_are_a_row_each(small):
    batch = samples("a rank masked")
    scores = samples_evaluator(small.probes, [batch], None, Ranks())
    assert scores["picture"].shape == (4 * 2 * G, 5 * 2 * G, 3) and scores["samples"] == 4
    rows = torch.from_numpy(scores["picture"]).unflatten(0, (4, 2 * G))
    assert torch.equal(rows[:, :, : 2 * G], batch["image"][batch.valid][:4])
    nobody = replace(batch, valid=torch.zeros_like(batch.valid))
    assert samples_evaluator(small.probes, [nobody], None, Ranks()) == {"samples": 0}


def test_captions_are_framed():
    assert (
        framed([3, 4], 9, 4)["tokens"].tolist() == [3, 4, 9, 9]
        and framed([3, 4], 9, 4)["length"] == 2
    )
    assert (
        framed([1, 2, 3, 4, 5], 9, 4)["tokens"].tolist() == [1, 2, 3, 4]
        and framed([1] * 5, 9, 4)["length"] == 4
    )


def test_another_codec_is_refused():
    spec = recipe().objective
    assert not spec.misfits()
    (lines,) = replace(spec, net=replace(SPEC, codes=7)).misfits()
    assert "objective.net.grid=4 objective.net.codes=6" in lines


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    from vtx_scale.data_pipeline.tools.toy import make_toy

    folder = tmp_path_factory.mktemp("words")
    make_toy(folder / "toy", samples=64, shards=1, seed=0)
    return tokenizer(str(train_tokenizer(str(folder / "toy"), folder / "tokenizer.json", 400)))


TEXTS = [
    "a small red circle left of a large blue square",
    "Über ein grünes Dreieck",
    "",
    "x",
    "aaaaaaaaaa   \n b",
]


def test_without_dropping_the_merges_are_the_tokenizers(words):
    for text in TEXTS:
        assert words.rougher(text, 0.0, np.random.default_rng(0)) == words.ids(text)


def test_a_tokenizer_without_merges_is_taken_as_before(tmp_path):
    """A tokenizer.json of words, not of merges: it loads, and has nothing to leave out."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    engine = Tokenizer(models.WordLevel({"a": 0, "b": 1, "<unk>": 2}, unk_token="<unk>"))
    engine.pre_tokenizer = pre_tokenizers.Whitespace()
    engine.add_special_tokens(["<|start|>", "<|end|>"])
    engine.save(str(tmp_path / "tokenizer.json"))
    words = tokenizer(str(tmp_path / "tokenizer.json"))
    assert words.rougher is None and words.ids("b a z") == [1, 0, 2]


def test_dropped_merges_spell_the_same_text_in_more_pieces(words):
    text, counts = TEXTS[0], []
    for share_ in (0.0, 0.1, 0.5, 0.99):
        spellings = [words.rougher(text, share_, np.random.default_rng(s)) for s in range(40)]
        assert {words.words(ids) for ids in spellings} == {words.words(words.ids(text))}
        counts.append(np.mean([len(ids) for ids in spellings]))
        assert (
            len({tuple(ids) for ids in spellings}) == 1
            if share_ == 0
            else len({tuple(ids) for ids in spellings}) > 5
        )
    assert counts == sorted(counts) and counts[-1] > 2 * counts[0]
    again = [words.rougher(text, 0.3, np.random.default_rng(7)) for _ in range(2)]
    assert again[0] == again[1]
