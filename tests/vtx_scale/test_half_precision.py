"""bfloat16 under sharding: evaluations run, and what must stay in float32 does."""

import math

import pytest
import torch

from tests.runs import lines, train_on_ranks
from tests.vtx_scale.shares import alone
from vtx_scale.blocks.autocast import no_autocast, with_master_value
from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.objectives.base import Context
from vtx_scale.objectives.dino import entropy
from vtx_scale.objectives.pairs import contrastive_loss, sigmoid_loss

KEYS = ("system.precision=bf16", "steps=3")
RECIPES = [
    "vit_s16_imagenet",
    "vit_r50_b16_jft",
    "resnet18_imagenet",
    "deit_ti16_distilled",
    "vit_b16_masked",
    "dino_vit_s16",
    "dino_resnet50",
    "clip_vit_b32",
    "clip_rn50",
    "siglip_vit_b16",
    "igpt_s",
    "dvae_dalle",
    "dalle_12b",
    "virtex_r50",
]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_sharded_runs_evaluate(tmp_path, recipe):
    """Every evaluator of the recipe, in the loop, where parameters are bfloat16 inside a forward
    pass and float32 outside.
    """
    from tests.runs import smoke

    folder = tmp_path / "run"
    train_on_ranks(folder, 2, "fsdp", *KEYS, recipe=recipe)
    ledger = lines(folder / "ledger.jsonl") if (folder / "ledger.jsonl").exists() else []
    assert not [row for row in ledger if row["kind"] == "evaluation_failed"]
    assert [r["name"] for r in lines(folder / "evaluations.jsonl")] == [
        e.name for e in smoke(recipe=recipe).evaluate
    ]
    rows = lines(folder / "metrics.jsonl")
    assert all(math.isfinite(r["loss"]) for r in rows)
    if "siglip" in recipe:
        assert (
            rows[0]["logit_scale"] == pytest.approx(10, rel=1e-6) and rows[0]["logit_bias"] == -10
        )
        assert 0 < abs(rows[1]["logit_bias"] + 10) < 0.01, (
            "a move that is smaller than what bfloat16 can say"
        )
    if "clip" in recipe and "siglip" not in recipe:
        assert rows[0]["logit_scale"] == pytest.approx(1 / 0.07, rel=1e-6)
        assert 0 < abs(rows[1]["logit_scale"] - 1 / 0.07) < 0.03


def test_rounding_is_undone_and_leaves_the_gradient():
    master = torch.tensor([2.6592], requires_grad=True)
    cast = master.to(torch.bfloat16)
    value = with_master_value(cast, master.detach(), torch.float32)
    assert value.item() == master.item() != cast.item()
    value.exp().backward()
    assert master.grad.item() == pytest.approx(math.exp(2.6592), rel=1e-2)
    assert with_master_value(master, None, torch.float32) is master


def test_similarities_are_in_float32_under_autocast():
    g = torch.Generator().manual_seed(0)
    x, y = (
        torch.nn.functional.normalize(torch.randn(12, 256, generator=g), dim=1) for _ in range(2)
    )
    there = torch.ones(12, dtype=torch.bool)
    scale, bias = torch.tensor([117.0]), torch.tensor([-16.5])
    plain = sigmoid_loss(x, y, scale, bias, there, there, 0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sigmoid_loss(x, y, scale, bias, there, there, 0), plain)
        assert (x @ y.T).dtype is torch.bfloat16
        with no_autocast(x.device):
            assert (x @ y.T).dtype is torch.float32


@pytest.mark.parametrize("form", ["gather", "ring"])
@pytest.mark.parametrize("sigmoid", [False, True])
def test_contrastive_losses_are_in_float32_under_autocast(form, sigmoid):
    """Their gradients too, of a backward pass outside of it."""

    def numbers(cast):
        g = torch.Generator().manual_seed(0)
        x, y = (torch.randn(12, 256, generator=g).requires_grad_() for _ in range(2))
        bias = torch.tensor([-16.5], requires_grad=True) if sigmoid else None
        there, scale = torch.arange(12) != 3, torch.tensor([1.17])
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            loss = contrastive_loss(x, y, scale, bias, there, Context(contrastive=form)).sum()
        return [loss, *torch.autograd.grad(loss, [x, y, *([bias] if sigmoid else [])])]

    assert all(torch.equal(a, b) for a, b in zip(numbers(True), numbers(False), strict=True))


def test_dinos_loss_is_in_float32_under_autocast():
    from tests.runs import smoke

    objective = alone(smoke(recipe="dino_vit_s16")).float()
    g = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(5, 2, 96, generator=g), torch.randn(5, 4, 96, generator=g)
    there = torch.ones(5, dtype=torch.bool)
    plain, sharp = objective.matched(teacher, student, there, 0)
    batch = Batch(
        {
            "globals": torch.zeros(5, 2, 32, 32, 3, dtype=torch.uint8),
            "locals": torch.zeros(5, 2, 16, 16, 3, dtype=torch.uint8),
        },
        there,
        *[torch.arange(5)] * 3,
    )
    with torch.autocast("cpu", torch.bfloat16):
        loss, log = objective(batch, 0)
    assert loss.dtype is torch.float32 and objective.answers[-1].dtype is torch.float32
    assert plain.dtype is torch.float32 and sharp.dtype is torch.float32
    assert sharp == pytest.approx(
        entropy((teacher / objective.temperature(0)).softmax(-1)).mean(1), rel=1e-5
    )
    assert log["teacher_entropy"] > 0
