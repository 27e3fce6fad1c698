"""The trainer's parts: groups, schedules, precision, micro-batches, recomputation,
compilation, followers.
"""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.require import need
from tests.runs import COLOUR, apart, losses, norms, smoke, tensors, train_on_ranks
from tests.skips import skips, train_poisoned
from vtx_scale.blocks.rules import Rule, initial_values, normal, ones, table_of, zeros
from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.distributed.ranks import Ranks
from vtx_scale.launch import recipes
from vtx_scale.launch.build import build_objective
from vtx_scale.launch.recipes.clip import clip_vit_b32, clip_vit_b32_smoke
from vtx_scale.objectives.base import Context, Follower, Objective
from vtx_scale.objectives.pairs import checkpointed_chunks
from vtx_scale.specs.objective import ObjectiveSpec
from vtx_scale.specs.run import Optimizer, Schedule
from vtx_scale.strategies.base import whole_leaves
from vtx_scale.strategies.single import Single
from vtx_scale.trainer.flops import training_flops
from vtx_scale.trainer.init import initialise
from vtx_scale.trainer.loop import Trainer
from vtx_scale.trainer.optim import groups, optimizer_of, set_rates
from vtx_scale.trainer.precision import Precision


def test_every_parameter_is_in_exactly_one_group():
    """CLIP's rule: gains, biases, scales and the class token are left alone,
    every matrix is decayed.
    """
    objective = build_objective(clip_vit_b32(), torch.float32)
    called = {id(p): n for n, p in objective.named_parameters()}
    grouped = {
        g["kind"]: [called[id(p)] for p in g["params"]]
        for g in groups(whole_leaves(objective, table_of(objective)))
    }
    assert sorted(n for names in grouped.values() for n in names) == sorted(called.values())
    assert grouped.keys() == {"body", "undecayed"}
    assert all(
        "norm" not in n and not n.endswith("bias") and "logit" not in n for n in grouped["body"]
    )
    assert {"image.positions", "text.positions", "text.embedding.weight", "image_proj"} <= set(
        grouped["body"]
    )
    assert "image.cls_token" in grouped["undecayed"] and "logit_scale" in grouped["undecayed"]


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (Schedule(kind="cosine", warmup=4), {0: 0.25, 3: 1.0, 4: 1.0, 54: 0.5, 104: 0.0}),
        (Schedule(kind="cosine", warmup=0, floor=0.1), {0: 1.0, 52: 0.55, 104: 0.1}),
        (Schedule(kind="linear", warmup=4), {1: 0.5, 54: 0.5, 104: 0.0}),
        (Schedule(kind="constant", warmup=2), {0: 0.5, 2: 1.0, 100: 1.0}),
        (
            Schedule(kind="rsqrt", warmup=4, timescale=25, cooldown=10),
            {4: 1.0, 79: 0.5, 99: 0.5 / math.sqrt(4.8)},
        ),
    ],
)
def test_schedules(schedule, values):
    for step, value in values.items():
        assert schedule(step, 104) == pytest.approx(value, abs=1e-12), step


class TwoLayers(Objective):
    parameter_rules = (Rule(r"classifier\..*", zeros, group="head"), Rule(r"body\..*", zeros))

    def __init__(self):
        super().__init__(ObjectiveSpec(), Context())
        self.body, self.classifier = nn.Linear(4, 40), nn.Linear(40, 34)

    def forward(self, x):
        return self.classifier(self.body(x))


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_optimizers_are_torchs(kind):
    """Our state made beforehand changes nothing: the same steps as a plain optimizer of torch,
    decays that move included.
    """
    torch.manual_seed(0)
    a, b = TwoLayers(), TwoLayers()
    b.load_state_dict(a.state_dict())
    spec = Optimizer(
        kind=kind, decay=0.1, decay_end=0.4, head_decay=3.0, lr=1e-2, betas=(0.9, 0.98)
    )
    mine = optimizer_of(whole_leaves(a, table_of(a)), spec)
    parts = [
        {"params": [b.body.weight]},
        {"params": [b.classifier.weight], "weight_decay": 3.0},
        {"params": [b.body.bias, b.classifier.bias], "weight_decay": 0.0},
    ]
    plain = (
        torch.optim.AdamW(parts, lr=1e-2, betas=spec.betas, eps=spec.eps)
        if kind == "adamw"
        else torch.optim.SGD(parts, lr=1e-2, momentum=0.9)
    )
    for step in range(5):
        set_rates(mine, spec, 1e-2, step, 5)
        plain.param_groups[0]["weight_decay"] = 0.4 - 0.3 * 0.5 * (1 + math.cos(math.pi * step / 5))
        x = torch.randn(6, 4)
        for net, opt in ((a, mine), (b, plain)):
            opt.zero_grad()
            net(x).square().sum().backward()
            opt.step()
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "run"
    train_on_ranks(folder, 1, "single")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [
        ("system.micro_batch=3",),
        ("system.recompute=true",),
        ("system.micro_batch=5", "system.recompute=true"),
    ],
)
def test_micro_batches_and_recomputation_change_no_curve(plain, tmp_path, keys):
    train_on_ranks(tmp_path / "run", 2, "fsdp", *keys)
    assert losses(tmp_path / "run") == pytest.approx(losses(plain), rel=1e-5)


@pytest.mark.slow
def test_accumulation_of_a_separable_objective(tmp_path):
    for name, world, keys in (("whole", 1, ()), ("parts", 2, ("system.micro_batch=3",))):
        train_on_ranks(
            tmp_path / name, world, "single" if world == 1 else "fsdp", *keys, recipe=COLOUR
        )
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize(("world", "strategy"), [(1, "single"), (2, "ddp"), (2, "fsdp")])
def test_half_precision_follows_the_curve(plain, tmp_path, world, strategy, precision):
    """Products in half precision, weights and optimizer in float32: losses, norms and moments of
    every step, which a scale that is not taken out again would show. float16's first scale may cost
    some steps, which the run that it is compared with skips too.
    """
    folder = tmp_path / "run"
    train_on_ranks(folder, world, strategy, f"system.precision={precision}", "system.skip_limit=12")
    if lost := skips(folder):
        assert precision == "fp16" and max(lost) < 6
        plain = tmp_path / "plain"
        train_poisoned(plain, 1, "single", lost, recipe="clip_vit_b32")
    pairs = zip(*(read(f) for read in (losses, norms) for f in (folder, plain)), strict=True)
    rows = [row for step, row in enumerate(pairs, 1) if step not in lost]
    loss, known_loss, norm, known_norm = zip(*rows, strict=True)
    assert loss == pytest.approx(known_loss, rel=5e-3) and loss != known_loss
    assert norm == pytest.approx(known_norm, rel=5e-2)
    assert all(t.dtype is torch.float32 for t in tensors(folder).values())
    far = apart(folder, plain)
    assert far["exp_avg"] < 0.2 and far["exp_avg_sq"] < 0.4, far


def test_what_is_logged_of_no_slots_weighs_nothing():
    """A rank, or a micro-batch, without a valid slot may log the mean of nothing."""
    valid = torch.tensor([True, True, False, False, True, False])
    values, numbers = torch.tensor([1.0, 3.0, 9.0, 9.0, 5.0, 9.0]), torch.arange(6)

    def forward(batch, step):
        seen = batch["x"][batch.valid]
        return seen.sum() * 0, {"mean": seen.mean(), "count": batch.valid.sum().float()}

    strategy = Single(torch.device("cpu"))
    strategy.forward, strategy.backward = forward, lambda part: None
    parts = SimpleNamespace(
        run=SimpleNamespace(
            objective=SimpleNamespace(separable=True), system=SimpleNamespace(micro_batch=2)
        ),
        strategy=strategy,
        precision=Precision(torch.float32, None),
        progress=SimpleNamespace(step=0),
    )
    batch = Batch({"x": values}, valid, numbers, numbers, numbers)
    _, logged = Trainer.forward_backward(parts, batch, 3.0)
    assert {name: value.item() for name, value in logged.items()} == {"mean": 9.0, "count": 5.0}


def test_the_scale_of_float16():
    precision = Precision(torch.float32, torch.float16, scale=2.0**16)
    precision.update(False)
    assert precision.scale == 2.0**15
    for _ in range(Precision.GROW):
        precision.update(True)
    assert precision.scale == 2.0**16
    bf16 = Precision(torch.float32, torch.bfloat16)
    bf16.update(False)
    assert bf16.scale == 1.0


@pytest.mark.slow
def test_compiled_units_keep_curve_and_names(plain, tmp_path):
    need("compile")
    train_on_ranks(
        tmp_path / "run",
        1,
        "fsdp",
        "system.compile=true",
        "system.recompute=true",
        "steps=3",
        "schedule.warmup=2",
    )
    train_on_ranks(tmp_path / "other", 1, "single", "steps=3")
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "other"), rel=1e-5)
    assert tensors(tmp_path / "run").keys() == tensors(plain).keys()


def test_memory_is_that_of_one_micro_batch():
    """Between the passes nothing is kept of the towers but their input,
    counted by autograd's own hooks.
    """

    def kept(micro):
        run = clip_vit_b32_smoke()
        run = replace(run, system=replace(run.system, micro_batch=micro))
        objective = build_objective(run, torch.float32, Ranks())
        Single(torch.device("cpu")).prepare(objective)
        initialise(objective, initial_values(objective), 0)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.append(t.numel()) or t, lambda t: t
        ):
            pixels = torch.zeros(64, 32, 32, 3, dtype=torch.uint8)
            checkpointed_chunks(objective.encode_image, pixels, objective.context.micro_batch)
        return sum(sizes)

    assert kept(4) == 64 * 32 * 32 * 3
    assert kept(None) > 10 * kept(4)


class Pair(Objective):
    """A teacher that follows a student, with a buffer."""

    parameter_rules = (Rule(r".*(weight|bias)", normal(1.0)), Rule(r".*", ones))

    def __init__(self, spec, context):
        super().__init__(spec, context)
        self.student, self.teacher = nn.BatchNorm1d(3), nn.BatchNorm1d(3).requires_grad_(False)

    def followers(self):
        return [Follower(self.teacher, self.student, lambda step: 0.9 if step else 0.5)]


def test_followers_start_from_their_source_and_move_by_their_momentum():
    with torch.device("meta"):
        pair = Pair(ObjectiveSpec(), Context())
    strategy = Single(torch.device("cpu"))
    strategy.prepare(pair)
    initialise(pair, initial_values(pair), 3)
    assert torch.equal(pair.teacher.weight, pair.student.weight) and pair.teacher.weight.std() > 0
    start = pair.teacher.weight.clone()
    with torch.no_grad():
        pair.student.weight.add_(1)
        pair.student.running_mean.add_(2)
    strategy.follow(0)
    assert torch.allclose(pair.teacher.weight, start + 0.5)
    assert torch.equal(pair.teacher.running_mean, torch.ones(3)), (
        "running statistics are the teacher's own"
    )
    strategy.follow(1)
    assert torch.allclose(pair.teacher.weight, start + 0.5 + 0.05)


def test_initial_values_do_not_hang_on_the_sharding():
    """A rank makes its rows alone; a seed or a name changes all of them."""
    from vtx_scale.trainer.init import keyed_flat

    whole = keyed_flat("a.weight", 0, 100_000, ("normal", 0.02), 1)
    assert torch.equal(
        torch.cat(
            [
                keyed_flat("a.weight", a, min(a + 7_777, 100_000), ("normal", 0.02), 1)
                for a in range(0, 100_000, 7_777)
            ]
        ),
        whole,
    )
    assert whole.std() == pytest.approx(0.02, rel=0.02) and abs(whole.mean()) < 3e-4
    for name, seed in (("b.weight", 1), ("a.weight", 2)):
        assert (
            keyed_flat(name, 0, 1000, ("normal", 0.02), seed) == whole[:1000]
        ).float().mean() < 0.01


@pytest.mark.parametrize("recipe", ["deit_ti16", "dino_vit_s16"])
def test_deits_initial_deviation_is_002(recipe):
    """timm's and DINO's trunc_normal_(std=0.02) cuts at 2, not at two deviations:
    it is a normal.
    """
    from vtx_scale.trainer.init import keyed_flat

    objective = build_objective(recipes.find(recipe, smoke=True), torch.float32)
    name, shape = next(
        (n, p.shape)
        for n, p in objective.named_parameters()
        if n.endswith("net.blocks.0.mlp.fc1.weight")
    )
    values = keyed_flat(name, 0, 1 << 16, initial_values(objective)(name, shape), 0)
    known = torch.nn.init.trunc_normal_(torch.empty(1 << 16), std=0.02)
    assert values.std() == pytest.approx(0.02, rel=0.02) and values.std() == pytest.approx(
        known.std().item(), rel=0.02
    )
    assert values.abs().max() > 0.06


def test_flops_of_a_step():
    """Three times the forward pass, whose count is that of the published models (two
    operations a product).

    A little less: pixels need no gradient.
    """
    from vtx_scale.data_pipeline.batch import Batch
    from vtx_scale.planner.count import macs

    run = clip_vit_b32()
    two = torch.arange(2)
    batch = Batch(
        {
            "image": torch.zeros(2, 224, 224, 3, dtype=torch.uint8),
            "tokens": torch.zeros(2, 77, dtype=torch.int32),
        },
        torch.ones(2, dtype=torch.bool),
        two,
        two,
        two,
    )
    counted = training_flops(lambda: build_objective(run, torch.float32), batch)
    assert 0.97 < counted / (6 * macs(run.objective)) <= 1.01


def test_smoke_recipes_are_small():
    """A smoke size is the same code with smaller numbers."""
    big, small = clip_vit_b32(), smoke()
    assert (
        type(big.objective) is type(small.objective)
        and big.objective.build == small.objective.build
    )
    assert small.steps == 12 and small.global_batch == 16
