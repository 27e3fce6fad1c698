"""Tensor parallelism: blocks that are cut compute what they compute whole, forwards and backwards,
whatever they drop; what is whole on every rank stays alike to the bit.
"""

import copy
import json
import math
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests import ranks
from tests.promises.shards import faulty
from tests.promises.test_p3_one_checkpoint import read_and_write
from tests.ranks import gathered, on_ranks
from tests.require import need
from tests.runs import (
    assert_same_bits,
    lines,
    losses,
    norms,
    smoke,
    tensors,
    train_on_ranks,
)
from vtx_scale.backbones import captioner, dalle, igpt
from vtx_scale.backbones.vit import MapHead
from vtx_scale.blocks.attention import Block, KVCache
from vtx_scale.blocks.cuts import Colwise, Rowwise, cut_fault, cut_layers
from vtx_scale.blocks.random import step_key
from vtx_scale.blocks.slots import VIEWS, SlotContext
from vtx_scale.checkpoints.format import steps
from vtx_scale.checkpoints.write import Writer
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.distributed.ranks import GroupRanks, Ranks
from vtx_scale.launch import override, recipes, worker
from vtx_scale.launch.build import build_objective
from vtx_scale.launch.paths import checkpoints_of
from vtx_scale.launch.prepare import prepare_folder, refuse
from vtx_scale.specs.dalle import TextToCodesConfig
from vtx_scale.specs.igpt import PixelGPTConfig
from vtx_scale.specs.resnet import ResNetConfig
from vtx_scale.specs.run import System
from vtx_scale.specs.virtex import VirtexConfig
from vtx_scale.strategies.apply import apply, strategy_of
from vtx_scale.strategies.cut_layers import share_layers
from vtx_scale.trainer.control import Control
from vtx_scale.trainer.optim import optimizer_of

C, B = 48, 3
CODES = TextToCodesConfig(width=C, heads=6, depth=4, context=5, grid=4, vocab=11, codes=7)
PIXELS = PixelGPTConfig(width=C, heads=6, depth=1, side=3)


def captioning():
    """A layer of six heads that drops at three places inside of what is cut."""
    spec = VirtexConfig(net=ResNetConfig(blocks=(1, 1)), width=C, dropout=0.3)
    layer = captioner.Layer(spec, "forwards.0")
    for attention in (layer.own, layer.map):
        attention.heads, attention.head_width = 6, C // 6
    return layer


BLOCKS = {
    "plain": lambda: Block(C, 6, 4 * C, "gelu", 1e-5, dropout=0.3, drop_path=0.3, name="b"),
    "causal": lambda: Block(C, 6, 2 * C, "quick_gelu", 1e-5, causal=True),
    "pixels": lambda: igpt.Block(PIXELS),
    "row": lambda: dalle.Block(CODES, "row"),
    "column": lambda: dalle.Block(CODES, "column"),
    "conv": lambda: dalle.Block(CODES, "conv"),
    "attention pooling": lambda: MapHead(C, 6, 2 * C, "gelu", 1e-6),
    "captions": captioning,
}


def filled(name: str) -> nn.Module:
    """In float64, with values that leave no part silent."""
    torch.manual_seed(0)
    block = BLOCKS[name]().double()
    with torch.no_grad():
        for p in block.parameters():
            p.copy_(torch.randn(p.shape, dtype=torch.float64) / math.sqrt(p.shape[-1]))
    return block


def inputs(name: str) -> tuple:
    torch.manual_seed(1)
    tokens = 1 + CODES.context + CODES.grid**2
    x = torch.randn(B, tokens, C, dtype=torch.float64, requires_grad=True)
    number = torch.arange(B) * VIEWS + 3
    slots = SlotContext(torch.ones(B, dtype=torch.bool), number, step_key(5, 2), Ranks())
    if name == "captions":
        memory = torch.randn(B, 7, C, dtype=torch.float64, requires_grad=True)
        return x, memory, slots
    return (x, slots) if name == "plain" else (x,)


def run(block: nn.Module, name: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """What a block gives, and the gradients of its inputs; its parameters have theirs."""
    given = inputs(name)
    y = block(*given)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=y.dtype)
    (y * weight).sum().backward()
    tensors = [t for t in given if isinstance(t, torch.Tensor)]
    return y.detach(), [t.grad for t in tensors]


def shared(whole: nn.Module, *wrapped: str) -> tuple[nn.Module, dict]:
    """A copy of which this rank has its part; recomputed and compiled first, as `apply` does it."""
    dist = gathered()
    module = copy.deepcopy(whole).to("meta")
    if "recompute" in wrapped:
        module.forward = partial(checkpoint, module.forward, use_reentrant=False)
    if "compile" in wrapped:
        module.compile()
    parts = share_layers(module, GroupRanks(dist.group.WORLD))
    module.to_empty(device="cpu")
    with torch.no_grad():
        for (name, p), (same, value) in zip(
            module.named_parameters(), whole.named_parameters(), strict=True
        ):
            assert name == same, "names never change"
            p.copy_(of(parts, name, value))
    return module, parts


def of(parts: dict, name: str, value: torch.Tensor) -> torch.Tensor:
    """This rank's part of a whole tensor, box under box."""
    if name not in parts:
        return value
    assert parts[name].shape == tuple(value.shape)
    return torch.cat([value[tuple(slice(a, b) for a, b in box)] for box in parts[name].boxes])


def on_rank(name: str, *wrapped: str) -> dict[str, bytes]:
    """One block cut against the same whole; the bits of gradients that every rank holds."""
    whole = filled(name)
    module, parts = shared(whole, *wrapped)
    y, grads = run(whole, name)
    part_y, part_grads = run(module, name)
    assert torch.allclose(part_y, y, rtol=1e-12, atol=1e-12), name
    for a, b in zip(part_grads, grads, strict=True):
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-12)
    alike = {"input": part_grads[0], "output": part_y}
    own = dict(module.named_parameters())
    for key, p in whole.named_parameters():
        assert torch.allclose(own[key].grad, of(parts, key, p.grad), rtol=1e-11, atol=1e-12), key
        if key not in parts:
            alike[key] = own[key].grad
    assert sum(p.numel() for p in own.values()) < sum(p.numel() for p in whole.parameters())
    return {key: t.numpy().tobytes() for key, t in alike.items()}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_cut_block_is_the_whole_one(name):
    """Copies get gradients of the same bits on both ranks: a norm's, whose layer is cut, too."""
    one, two = on_ranks(2, on_rank, name)
    assert one == two and "norm.weight" in one or "norm1.weight" in one


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "column", "captions", "attention pooling"])
def test_three_ranks_share_six_heads(name):
    one, *others = on_ranks(3, on_rank, name)
    assert all(other == one for other in others)


def test_a_block_that_is_computed_again_is_cut_too():
    one, two = on_ranks(2, on_rank, "plain", "recompute")
    assert one == two


@pytest.mark.full
@pytest.mark.parametrize("wrapped", [("compile",), ("recompute", "compile")], ids="+".join)
def test_a_compiled_block_is_cut_too(wrapped, monkeypatch):
    need("compile")
    monkeypatch.setattr(ranks, "PATIENCE", 280.0)
    one, two = on_ranks(2, on_rank, "plain", *wrapped)
    assert one == two


def looks() -> None:
    """How a block attends is told of all heads; keys and values are kept of some."""
    whole = filled("plain")
    module, _ = shared(whole)
    x = inputs("plain")[0].detach()
    with torch.no_grad():
        assert torch.allclose(module(x, look=True), whole(x, look=True), rtol=1e-12)
        whole = filled("row")
        module, _ = shared(whole)
        ours, theirs = (KVCache(22) for _ in range(2))
        for a, b in ((0, 6), *((n, n + 1) for n in range(6, 22))):
            step = inputs("row")[0].detach()[:, a:b]
            assert torch.allclose(module(step, ours), whole(step, theirs), rtol=1e-11, atol=1e-12)
        assert ours.k is not None and theirs.k is not None
        assert ours.k.shape[1] == theirs.k.shape[1] // 2


def test_heads_are_looked_at_and_remembered():
    on_ranks(2, looks)


def test_every_block_that_attends_is_cut():
    """All of its heads and hidden units; and no layer is named that is none."""
    for name, build in BLOCKS.items():
        block = build()
        cuts = cut_layers(block)
        assert {type(c) for c in cuts.values()} == {Colwise, Rowwise}
        wide = {n for n, m in block.named_modules() if isinstance(m, nn.Linear)}
        assert cuts.keys() == wide, name


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_parts_cover_a_layer_once(count):
    """Of qkv in three boxes, whose rows a rank holds one box under another."""
    for cut, shape in (
        (Colwise(parts=3, heads=12), (72, 10)),
        (Colwise(parts=3, heads=12), (72,)),
        (Colwise(parts=2), (48, 10)),
        (Colwise(), (24,)),
        (Rowwise(), (10, 24)),
    ):
        seen = torch.zeros(shape)
        for index in range(count):
            boxes = cut.boxes(shape, index, count)
            assert len(boxes) == getattr(cut, "parts", 1)
            for box in boxes:
                seen[tuple(slice(a, b) for a, b in box)] += 1
        assert bool((seen == 1).all())


def test_what_does_not_divide_is_refused_in_a_sentence():
    with torch.device("meta"):
        three = nn.ModuleDict({"blocks": Block(66, 3, 264, "gelu", 1e-5)})
        odd = Block(64, 4, 257, "gelu", 1e-5)
    fault = cut_fault(three, 2)
    assert fault == (
        "system.tp=2 does not divide the 3 heads of blocks.attn.qkv: "
        "choose a system.tp that does, or another strategy."
    )
    assert cut_fault(three, 3) is None
    assert "257 outputs of mlp.fc1" in str(cut_fault(odd, 2))


ODD = {
    "dalle_12b": (
        "objective.net.width=66",
        "objective.net.heads=6",
        "objective.net.vocab=259",
        "objective.net.depth=2",
    ),
    "clip_vit_b32": (
        "objective.image.width=66",
        "objective.image.heads=6",
        "objective.image.mlp=138",
        "objective.text.width=42",
        "objective.text.heads=6",
        "objective.image.pool=map",
        "objective.image.class_token=false",
        "objective.text.vocab=259",
    ),
    "dino_vit_s16": ("objective.net.width=66", "objective.net.heads=6", "objective.net.mlp=138"),
}


def held(recipe: dict) -> list[tuple]:
    """What this rank would put into a checkpoint, without its values."""
    gathered()
    run = override.from_dict(recipe)
    world = int(os.environ["WORLD_SIZE"])
    strategy = strategy_of(run.system, world, torch.device("cpu"), None)
    apply(build_objective(run, torch.float32), strategy, run.system)
    optimizer = optimizer_of(strategy.leaves(), run.optim)
    for leaf in strategy.leaves():
        assert type(leaf.tensor) in (torch.Tensor, nn.Parameter), "a leaf is a plain tensor"
    rows = []
    for s in strategy.slices(optimizer):
        assert tuple(s.tensor.shape) == tuple(b - a for a, b in s.box), s.key
        rows.append((s.key, s.shape, s.box, s.replicas, s.replica))
    return rows


CELLS = [
    (2, "tp", "dalle_12b", "adamw"),
    (2, "tp", "clip_vit_b32", "adafactor"),
    pytest.param(3, "tp", "dino_vit_s16", "adamw", marks=pytest.mark.slow),
    pytest.param(3, "tp", "clip_vit_b32", "lookahead", marks=pytest.mark.slow),
    pytest.param(4, "fsdp", "dalle_12b", "adafactor", marks=pytest.mark.slow),
    pytest.param(4, "fsdp", "clip_vit_b32", "adamw", marks=pytest.mark.slow),
    pytest.param(6, "fsdp", "clip_vit_b32", "adafactor", marks=pytest.mark.full),
]


@pytest.mark.parametrize(("world", "strategy", "recipe", "optimizer"), CELLS)
def test_slices_cover_every_tensor_once(world, strategy, recipe, optimizer):
    """A number of each copy on just one rank, of sizes that nothing divides."""
    axis = () if strategy == "tp" else ("system.tp=2",)
    keys = (f"system.strategy={strategy}", *axis, f"optim.kind={optimizer}", *ODD[recipe])
    alone = smoke(*keys[1 + len(axis) :], recipe=recipe)
    whole = on_ranks(1, held, override.to_dict(alone))
    ranks = on_ranks(world, held, override.to_dict(smoke(*keys, recipe=recipe)))
    shapes = {key: shape for key, shape, *_ in whole[0]}
    counts: dict[tuple[str, int], torch.Tensor] = {}
    copies: dict[str, set[int]] = {}
    for rank in ranks:
        assert {key: shape for key, shape, *_ in rank} == shapes, "every rank knows every key"
        for key, shape, box, replicas, replica in rank:
            count = counts.setdefault((key, replica), torch.zeros(shape, dtype=torch.int32))
            count[tuple(slice(a, b) for a, b in box)] += 1
            copies.setdefault(key, set()).add(replicas)
    for key, many in copies.items():
        (number,) = many
        assert {replica for k, replica in counts if k == key} == set(range(number)), key
    assert all(bool((count == 1).all()) for count in counts.values())
    assert {n for many in copies.values() for n in many} >= {1, world if axis == () else 2}


def test_a_run_that_ranks_cannot_share_is_refused(tmp_path):
    """Before anything is written, and whatever the width is."""
    three = ("objective.net.width=66", "objective.net.heads=3", "objective.net.mlp=138")
    run = smoke("system.strategy=tp", *three, recipe="dino_vit_s16")
    with pytest.raises(UserError, match="system.tp=2 does not divide the 3 heads of student.net.b"):
        refuse(run, tmp_path / "run", 2)
    assert not (tmp_path / "run").exists()
    refuse(run, tmp_path / "run", 3)


def test_a_model_without_such_blocks_says_so(tmp_path, capsys):
    run = smoke("system.strategy=tp", recipe="resnet50_imagenet")
    refuse(run, tmp_path / "run", 2)
    assert "Supervised has no block that 2 ranks could share" in capsys.readouterr().err


def test_worlds_and_strategies_that_do_not_go_with_an_axis():
    def fault(world, **fields):
        return System(**fields).world_fault(world) or ""

    assert "needs a world that it divides, not 3" in fault(3, strategy="fsdp", tp=2)
    assert "leave system.tp out" in fault(4, strategy="tp", tp=2)
    assert "not ddp: choose one of them" in fault(4, strategy="ddp", tp=2)
    assert not fault(4, strategy="fsdp", tp=2) and not fault(2, strategy="tp", tp=2)
    assert System(tp=2).strategy_at(4, False) == System(tp=2).strategy_at(4, True)
    assert [System(strategy="tp").sharers(4), System(tp=2).sharers(4), System().sharers(4)] == [
        1,
        2,
        4,
    ]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """(recipe, keys) -> the folder of eight steps on one process."""
    folders = {}

    def get(recipe, *keys):
        if (recipe, keys) not in folders:
            folder = folders[recipe, keys] = tmp_path_factory.mktemp("alone") / "run"
            train_on_ranks(folder, 1, "single", "steps=8", *keys, recipe=recipe)
        return folders[recipe, keys]

    return get


LIMITS = ("objective.scale=20", "objective.scale_limit=14")
DINO = ("objective.frozen=3", "optim.clip=0.1", "optim.clip_each=true", "system.micro_batch=3")
VIRTEX = ("system.precision=fp64", "objective.width=128", "objective.dropout=0.2")
DROPS = ("objective.net.dropout=0.2", "objective.net.drop_path=0.2", "system.recompute=true")
FLOAT64 = ("system.precision=fp64",)
FULL = pytest.mark.full
RUNS = [
    (2, "tp", "dino_vit_s16", DINO),
    pytest.param(4, "fsdp", "dalle_12b", ("system.micro_batch=3",), marks=FULL),
    (2, "tp", "vit_b16_imagenet21k", DROPS),
    (2, "tp", "clip_vit_b32", LIMITS),
    (2, "tp", "clip_vit_b32", ("optim.kind=sgd", "optim.lr=0.001")),
    (2, "tp", "clip_vit_b32", ("optim.kind=lookahead", "optim.lr=0.001", "optim.lookahead=3")),
    (2, "tp", "vit_g14_jft3b", ()),  # Adafactor
    (4, "fsdp", "vit_g14_jft3b", ()),
    pytest.param(4, "fsdp", "clip_vit_b32", LIMITS, marks=FULL),
    pytest.param(4, "fsdp", "clip_vit_b32", ("optim.moments=bfloat16",), marks=FULL),
    pytest.param(4, "fsdp", "clip_vit_b32", ("system.contrastive=ring",), marks=FULL),
    pytest.param(2, "tp", "resnet50_imagenet", FLOAT64, marks=FULL),  # copies alone
    pytest.param(2, "fsdp", "clip_vit_b32", ("system.micro_batch=3",), marks=FULL),
    pytest.param(4, "fsdp", "dino_vit_s16", DINO, marks=FULL),
    pytest.param(2, "tp", "dalle_12b", (), marks=FULL),
    pytest.param(2, "tp", "virtex_r50", VIRTEX, marks=FULL),
    pytest.param(4, "fsdp", "virtex_r50", VIRTEX, marks=FULL),
    pytest.param(2, "tp", "igpt_s_bert", (), marks=FULL),
    pytest.param(2, "tp", "deit_s16_distilled", (), marks=FULL),  # a frozen teacher that is cut
    pytest.param(4, "fsdp", "siglip_vit_b16", (), marks=FULL),
    pytest.param(4, "fsdp", "vit_b16_imagenet21k", DROPS, marks=FULL),
]


@pytest.mark.slow
@pytest.mark.parametrize(("world", "strategy", "recipe", "keys"), RUNS)
def test_a_run_on_an_axis_is_the_run_of_one_process(alone, tmp_path, world, strategy, recipe, keys):
    """Losses, norms, parameters at the end and what evaluators say; a layer that is frozen at
    first, a teacher that follows, a scale held within limits, whatever is dropped.
    """
    axis = () if strategy == "tp" else ("system.tp=2",)
    one, many = alone(recipe, *keys), tmp_path / "run"
    train_on_ranks(many, world, strategy, "steps=8", *axis, *keys, recipe=recipe)
    assert losses(many) == pytest.approx(losses(one), rel=1e-5)
    assert norms(many) == pytest.approx(norms(one), rel=1e-5)
    found, wanted = tensors(many), tensors(one)
    assert found.keys() == wanted.keys()
    # in exact arithmetic the gradient of a key's bias is nought
    compared = [k for k in wanted if k.startswith("param/") and not k.endswith("kv.bias")]
    far = {k: (found[k].double() - wanted[k].double()).abs().max().item() for k in compared}
    assert max(far.values()) < 1e-4, max(far, key=far.get)
    for found_row, wanted_row in zip(scores(many), scores(one), strict=True):
        assert found_row == pytest.approx(wanted_row, rel=1e-4, abs=1e-4)


def scores(folder: Path) -> list[dict[str, float]]:
    """What evaluators found, an item each."""
    file = folder / "evaluations.jsonl"
    rows = lines(file) if file.exists() else []
    return [{k: v for k, v in row.items() if k != "name"} for row in rows]


@pytest.mark.slow
def test_a_limit_holds_on_an_axis(alone):
    """At a rate that could not have brought it there: those runs do not agree by doing nothing."""
    scale = tensors(alone("clip_vit_b32", *LIMITS))["param/logit_scale"]
    assert scale.item() < math.log(14) + 1e-6 < math.log(20) - 8 * 1e-3


def drifted(recipe: dict) -> None:
    """Gradients that differ by rank, as no kernel should make them."""
    dist = gathered()
    run = override.from_dict(recipe)
    strategy = strategy_of(run.system, dist.get_world_size(), torch.device("cpu"), None)
    apply(build_objective(run, torch.float32), strategy, run.system)
    rank = float(dist.get_rank())
    with strategy.micro(last=True):
        for p in strategy.objective.parameters():
            if p.requires_grad:
                p.grad = torch.full_like(p, 1 + rank)
    found = {leaf.copies: set() for leaf in strategy.leaves() if leaf.trained}
    for leaf in strategy.leaves():
        if leaf.trained:
            found[leaf.copies] |= set(leaf.grad.flatten().tolist())
    first = rank // 2 * 2 if run.system.tp else 0.0  # of this rank's axis
    assert found == {1: {1 + rank}, 2: {1 + first}}, found


@pytest.mark.parametrize(
    ("world", "keys"),
    [
        (2, ("system.strategy=tp",)),
        pytest.param(4, ("system.strategy=fsdp", "system.tp=2"), marks=pytest.mark.slow),
    ],
)
def test_copies_cannot_drift_apart(world, keys):
    """Their gradients are those of the axis's first rank, whatever the others computed."""
    on_ranks(world, drifted, override.to_dict(smoke(*keys)))


@pytest.mark.slow
def test_a_bad_sample_is_counted_once(alone, tmp_path):
    """Both ranks of an axis meet it, in training and in an evaluation."""
    shards, reasons = faulty(tmp_path / "shards")
    keys = (f"data.shards={shards}", f"data.val_shards={shards}", "data.bad_limit=1")
    train_on_ranks(tmp_path / "run", 2, "tp", "steps=8", *keys)

    def named(folder: Path) -> list[str]:
        rows = lines(folder / "ledger.jsonl")
        return sorted(json.dumps({k: v for k, v in r.items() if k != "time"}) for r in rows)

    assert named(tmp_path / "run") == named(alone("clip_vit_b32", *keys))
    assert len(named(tmp_path / "run")) > 2 * len(reasons)


WAYS = [("tp", 2, ()), ("fsdp", 4, ("system.tp=2",)), ("single", 1, ())]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "keys"),
    [
        ("dino_vit_s16", ()),
        pytest.param("vit_g14_jft3b", (), marks=FULL),
        pytest.param("clip_vit_b32", ("optim.kind=lookahead",), marks=FULL),
    ],
)
def test_a_checkpoint_goes_from_axis_to_axis(alone, tmp_path, recipe, keys):
    """Read and written again by each without a step: equal to the bit, moments and teacher too."""
    source = alone(recipe, *keys)
    for k, (strategy, world, axis) in enumerate(WAYS):
        run = smoke(f"system.strategy={strategy}", *axis, *keys, recipe=recipe)
        target = tmp_path / str(k)
        target.mkdir()
        shutil.copyfile(source / "run.json", target / "run.json")
        on_ranks(world, read_and_write, override.to_dict(run), recipes.STRANGERS, source, target)
        assert_same_bits(target, alone(recipe, *keys))
        source = target


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "keys"),
    [(2, ("tp",)), pytest.param(4, ("fsdp", "system.tp=2", "system.contrastive=ring"), marks=FULL)],
)
def test_an_interrupted_run_is_the_undisturbed_one(tmp_path, world, keys):
    """To the bit, on the same axis."""
    train_on_ranks(tmp_path / "one", world, *keys, "steps=6")
    train_on_ranks(tmp_path / "two", world, *keys, "steps=6", "system.leave_after=3", code=75)
    train_on_ranks(tmp_path / "two", world, *keys, "steps=6")
    assert losses(tmp_path / "two") == losses(tmp_path / "one")
    assert_same_bits(tmp_path / "two", tmp_path / "one")


def request_on_the_last(recipe: dict, folder: Path, step: int, fails: bool) -> int:
    """The worker; at a step the last rank alone is asked to leave, or its save fails."""
    run, last = override.from_dict(recipe), os.environ["RANK"] == str(run_world() - 1)
    if last and fails:
        plain = Writer._write

        def write(self: Writer, work: Any) -> None:
            if work.step == step:
                raise OSError(28, "No space left on device")
            plain(self, work)

        Writer._write = write
    elif last:
        Control.wants_to_leave = lambda self: calls(self) == step
    return worker.work(run, folder)


def run_world() -> int:
    return int(os.environ["WORLD_SIZE"])


def calls(control: Control) -> int:
    """How often it was asked."""
    control.asked = getattr(control, "asked", 0) + 1
    return control.asked


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True], ids=["leave", "save"])
def test_a_flag_of_one_rank_of_an_axis_is_seen_by_all(tmp_path, fails):
    """A rank whose samples another one counts has a voice of its own."""
    run = smoke("system.strategy=tp", "checkpoint.every=2", "steps=6")
    folder = tmp_path / "run"
    prepare_folder(run, folder, refuse(run, folder, 2))
    codes = on_ranks(2, request_on_the_last, override.to_dict(run), folder, 4, fails)
    saved = steps(checkpoints_of(folder))
    if fails:
        assert codes == [0, 0] and saved == [2, 6]
        failed = [r for r in lines(folder / "ledger.jsonl") if r["kind"] == "save_failed"]
        assert [(r["step"], r["rank"]) for r in failed] == [(4, 1)]
    else:
        assert codes == [75, 75] and saved[-1] == 4
