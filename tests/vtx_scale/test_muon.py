"""Muon against torch's own, whole and cut into rows; moments in bfloat16."""

import pytest
import torch

from tests.ranks import gathered, on_ranks
from tests.runs import losses, smoke, tensors, train_on_ranks
from vtx_scale.blocks.random import bits, step_key
from vtx_scale.blocks.rules import Rule, table_of, zeros
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.distributed.sharding import Leaf, boxes_of_flat, whole_box
from vtx_scale.launch.build import build_objective
from vtx_scale.specs.run import Optimizer
from vtx_scale.strategies.base import whole_leaves
from vtx_scale.trainer.moments import places, round_by_chance
from vtx_scale.trainer.optim import groups, optimizer_of, set_rates

SHAPES = {"a.weight": (48, 40), "b.weight": (20, 64), "c.weight": (7, 9), "d.weight": (33, 33)}
SHAPES |= {"a.bias": (48,), "embedding.weight": (30, 8)}
RULES = {name: Rule(".*", zeros, hidden=False if "embedding" in name else None) for name in SHAPES}
SPEC = Optimizer(kind="muon", lr=0.02, decay=0.1)
STEPS = 4
RECIPES = ("clip_vit_b32", "dalle_12b", "igpt_s", "virtex_r50", "vit_b16_masked", "dino_vit_s16")


def numbers(name, step):
    seed = len(name) + ord(name[0]) + 100 * step
    return torch.randn(SHAPES[name], generator=torch.Generator().manual_seed(seed))


def block(name, cut):
    """Rows of this rank where `cut`, else all: the leaf, and where it lies."""
    dist = gathered()
    rank, world = dist.get_rank(), dist.get_world_size()
    shape = SHAPES[name]
    box, cuts, copies = whole_box(shape), (), (world, rank)
    if cut:
        rows = -(-shape[0] // world)
        lo, hi = (min(r * rows, shape[0]) for r in (rank, rank + 1))
        box, cuts, copies = ((lo, hi), *box[1:]), ((0, dist.group.WORLD),), (1, 0)
    at = tuple(slice(a, b) for a, b in box)
    here = numbers(name, 99)[at].clone().requires_grad_()
    return Leaf(name, shape, RULES[name], (box,), here, *copies, cuts), at


def on_rank(cut):
    leaves = [block(name, cut) for name in SHAPES]
    optimizer = optimizer_of([leaf for leaf, _ in leaves], SPEC)
    for step in range(1, STEPS + 1):
        for leaf, at in leaves:
            leaf.tensor.grad = numbers(leaf.name, step)[at].clone()
        optimizer.step()
    return {leaf.name: (leaf.boxes[0], leaf.tensor.tolist()) for leaf, _ in leaves}


def torchs():
    """torch's Muon on matrices with AdamW's size of update, AdamW on the rest."""
    values = {name: numbers(name, 99).requires_grad_() for name in SHAPES}
    matrices = [values[n] for n in SHAPES if n[1:] == ".weight"]
    decayed = values["embedding.weight"]
    rest = [{"params": [values["a.bias"]], "weight_decay": 0.0}, {"params": [decayed]}]
    both = (
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=0.02, weight_decay=0.1),
    )
    for step in range(1, STEPS + 1):
        for name, p in values.items():
            p.grad = numbers(name, step)
        for optimizer in both:
            optimizer.step()
    return values


@pytest.mark.parametrize(
    ("world", "cut"), [(1, False), (2, False), (3, False), (1, True), (2, True), (3, True)]
)
def test_it_is_torchs(world, cut):
    """Equal to the bit; a rank with no row of a matrix takes part too."""
    expected = torchs()
    for found in on_ranks(world, on_rank, cut):
        for name, (box, value) in found.items():
            part = expected[name][tuple(slice(a, b) for a, b in box)]
            assert torch.equal(torch.tensor(value).view(part.shape), part), name


def test_hidden_matrices_alone_are_orthogonalised():
    """No embedding, output, position, projection or head of any kind of recipe."""
    outside = ("embedding", "positions", "words", "text.weight", "code.weight", "colours", "_out.")
    for recipe in (
        "clip_vit_b32",
        "dalle_12b",
        "igpt_s",
        "virtex_r50",
        "vit_b16_masked",
        "dino_vit_s16",
    ):
        objective = build_objective(smoke(recipe=recipe), torch.float32)
        names = {id(p): n for n, p in objective.named_parameters()}
        grouped = groups(whole_leaves(objective, table_of(objective)), muon=True)
        moved = [names[id(p)] for g in grouped if g["matrix"] for p in g["params"]]
        assert moved and not [n for n in moved if any(w in n for w in (*outside, "head", "out.w"))]
        assert any("qkv" in n or ".kv." in n for n in moved) and any("fc1" in n for n in moved)


def test_where_matrices_are_no_blocks_of_rows_it_is_refused():
    shape = (40, 40)
    p = torch.zeros(40, requires_grad=True)
    flat = Leaf("w.weight", shape, RULES["a.weight"], boxes_of_flat(shape, 10, 50), p, cuts=None)
    with pytest.raises(UserError, match="optim.kind=muon orthogonalises whole matrices"):
        optimizer_of([flat], SPEC)


def rounded(value, chance):
    out = torch.zeros_like(value, dtype=torch.bfloat16)
    round_by_chance(value.clone(), chance, out)
    return out


def test_chance_rounds_to_the_right_mean():
    value = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    for shift in (0, 16):
        mean = torch.zeros(4000)
        for k in range(256):
            drawn = bits(step_key(0, k), "w", torch.arange(4000, dtype=torch.int32))
            low = rounded(value, (drawn >> shift) & 0xFFFF).float()
            assert ((value - low).abs() <= value.abs() * 2**-7).all(), "one of the two neighbours"
            mean += low / 256
        spread = value.abs() * 2**-8 / 256**0.5
        assert ((mean - value).abs() < 5 * spread).all()
        assert ((mean - value) / spread).mean().abs() < 0.1
    odd = torch.tensor([torch.inf, -torch.inf, 0.0, -0.0])
    assert torch.equal(rounded(odd, torch.full((4,), 0xFFFF, dtype=torch.int32)), odd.bfloat16())


def test_chance_belongs_to_the_place():
    """However a tensor is cut; another name, step or seed draws others, and all bits are fair."""
    shape, key = (50, 7, 30), step_key(3, 2)
    whole = bits(key, "w", torch.arange(10500, dtype=torch.int32))
    for lo, hi in ((0, 10500), (10, 5000), (33, 34), (40, 40)):
        at = places(shape, boxes_of_flat(shape, lo, hi), torch.device("cpu"))
        assert torch.equal(bits(key, "w", at), whole[lo:hi])
    for other in ((step_key(3, 3), "w"), (step_key(4, 2), "w"), (key, "v")):
        drawn = bits(*other, torch.arange(10500, dtype=torch.int32))
        for k in range(32):
            same = ((whole ^ drawn) >> k & 1).float().mean()
            assert 0.47 < same < 0.53 and 0.47 < (drawn >> k & 1).float().mean() < 0.53, k


def test_moments_in_bfloat16_follow_adamw():
    """Near AdamW's steps, at half its memory; and nothing moves where the sum of a thousand small
    changes would be lost by rounding to the nearest.
    """
    ends = {}
    for moments in ("float32", "bfloat16"):
        p = numbers("a.weight", 99).requires_grad_()
        leaf = Leaf("a.weight", SHAPES["a.weight"], RULES["a.weight"], (whole_box((48, 40)),), p)
        spec = Optimizer(lr=1e-3, decay=0.1, moments=moments)
        optimizer = optimizer_of([leaf], spec, seed=1)
        set_rates(optimizer, spec, 1e-3, 0, 1)
        held = sum(
            t.numel() * t.element_size() for k, t in optimizer.state[p].items() if k != "step"
        )
        for _ in range(300):
            p.grad = 0.01 * (p.detach() - 1)
            optimizer.step()
        ends[moments] = (p.detach(), optimizer.state[p]["exp_avg_sq"].float(), held)
    assert ends["bfloat16"][2] * 2 == ends["float32"][2]
    apart = ends["bfloat16"][0] - ends["float32"][0]  # of a way of 0.3
    assert apart.abs().max() < 2e-2 and apart.mean().abs() < 1e-3
    ratio = ends["bfloat16"][1].mean() / ends["float32"][1].mean()
    assert 0.97 < ratio < 1.03, "the second moment grows by a thousandth a step"


@pytest.mark.slow
@pytest.mark.parametrize("key", ["optim.kind=muon", "optim.moments=bfloat16"])
def test_the_same_run_on_any_world(tmp_path, key):
    """Curves within 1e-5 of one process; after a pause the same to the bit."""
    cells = (("single", 1), ("ddp", 2), ("fsdp", 3), ("hsdp", 4))
    for strategy, world in cells:
        folder = tmp_path / f"{strategy}{world}"
        train_on_ranks(folder, world, strategy, key, "steps=8")
        assert losses(folder) == pytest.approx(losses(tmp_path / "single1"), rel=1e-5)
    broken = tmp_path / "broken"
    train_on_ranks(broken, 3, "fsdp", key, "steps=8", "system.leave_after=3", code=75)
    train_on_ranks(broken, 3, "fsdp", key, "steps=8")
    assert losses(broken) == losses(tmp_path / "fsdp3")
    ends = tensors(broken), tensors(tmp_path / "fsdp3")
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][k], ends[1][k]) for k in ends[0])
