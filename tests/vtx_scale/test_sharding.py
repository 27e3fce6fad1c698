"""Leaves and slices: every element of every tensor once, wherever the cuts fall."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.ranks import gathered, on_ranks
from tests.runs import assert_same_bits, losses, train_on_ranks
from vtx_scale.blocks.rules import Rule, zeros
from vtx_scale.distributed.sharding import Leaf, Place, boxes_of_flat, slices_at
from vtx_scale.launch.build import build_objective
from vtx_scale.launch.override import override
from vtx_scale.launch.recipes import find
from vtx_scale.strategies.base import part_number

SHAPES = st.lists(st.integers(1, 5), max_size=4).map(tuple)


@given(SHAPES, st.data())
def test_boxes_of_an_interval_are_its_elements_in_order(shape, data):
    whole = torch.arange(math.prod(shape)).view(shape)
    lo = data.draw(st.integers(0, whole.numel()))
    hi = data.draw(st.integers(lo, whole.numel()))
    boxes = boxes_of_flat(shape, lo, hi)
    found = [whole[tuple(slice(a, b) for a, b in box)].reshape(-1) for box in boxes]
    flat = torch.cat(found) if found else torch.zeros(0, dtype=torch.int64)
    assert torch.equal(flat, torch.arange(lo, hi))
    assert len(boxes) <= 2 * max(len(shape), 1), "more boxes than an interval needs"


@given(SHAPES, st.data())
def test_slices_are_views_of_their_boxes(shape, data):
    """What is written through them lies in the tensor where its boxes say."""
    size = math.prod(shape)
    lo = data.draw(st.integers(0, size))
    hi = data.draw(st.integers(lo, size))
    here = torch.zeros(hi - lo)
    whole = torch.arange(size, dtype=torch.float32).view(shape)
    slices = list(slices_at("param/w", Place(shape, boxes_of_flat(shape, lo, hi)), here))
    assert slices, "a reader must know the key of what lies elsewhere"
    for part in slices:
        part.tensor.copy_(whole[tuple(slice(a, b) for a, b in part.box)])
    assert torch.equal(here, torch.arange(lo, hi, dtype=torch.float32))


def test_no_two_parts_of_a_large_model_have_one_number():
    """Of the parameters of CLIP ViT-H/14 in 512 shards."""
    objective = build_objective(find("clip_vit_h14"), torch.float32)
    numbers, count = set(), 0
    for name, p in objective.named_parameters():
        shape, rows = tuple(p.shape), -(-p.shape[0] // 512)
        for first in range(0, shape[0], rows):
            box = ((first, min(first + rows, shape[0])), *((0, n) for n in shape[1:]))
            leaf = Leaf(name, shape, Rule(".*", zeros), (box,), p)
            numbers.add(part_number(leaf))
            count += 1
    assert len(numbers) == count > 100_000


def of_this_rank(strategy: str, recipe: str, *keys: str):
    """Key -> (shape, boxes that this rank would write), and names of leaves that a pass moves."""
    from vtx_scale.strategies.apply import apply, strategy_of
    from vtx_scale.trainer.optim import optimizer_of

    dist = gathered()
    run = override(find(recipe, smoke=True), [f"system.strategy={strategy}", *keys])
    parallel = strategy_of(run.system, dist.get_world_size(), torch.device("cpu"), None)
    objective = build_objective(run, torch.float32, parallel.data)
    apply(objective, parallel, run.system)
    before = {leaf.name: leaf.tensor.data_ptr() for leaf in parallel.leaves()}
    optimizer = optimizer_of(parallel.leaves(), run.optim)
    parts = {}
    for part in parallel.slices(optimizer):
        shape, boxes = parts.setdefault(part.key, (part.shape, []))
        if part.tensor.numel():
            boxes.append((part.box, part.replicas, part.replica))
    parallel.call(lambda: torch.zeros(1))
    parallel.reshard()
    now = dict(objective.named_parameters())
    local = {n: getattr(p, "_local_tensor", p).data_ptr() for n, p in now.items()}
    return parts, [name for name, at in before.items() if local[name] != at]


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "world"), [("ddp", 3), ("fsdp", 3), ("fsdp", 4), ("hsdp", 4)])
@pytest.mark.parametrize("recipe", ["clip_vit_b32", "dino_vit_s16", "vit_g14_jft3b"])
def test_slices_of_all_ranks_cover_every_tensor_once(strategy, world, recipe):
    """The state of Adafactor too; each copy number once, and nothing moves in memory at a pass."""
    assert_covered(on_ranks(world, of_this_rank, strategy, recipe))


@pytest.mark.full
def test_a_rank_without_rows_stands_in_for_nobody():
    """33 rows over eight ranks, five each: the last has none, but a whole mean over them."""
    keys = ("width=33", "heads=3", "mlp=36", "pool=gap", "class_token=false")
    assert_covered(
        on_ranks(8, of_this_rank, "fsdp", "vit_g14_jft3b", *(f"objective.net.{k}" for k in keys))
    )


def assert_covered(ranks):
    """Every element once by each copy."""
    for parts, moved in ranks:
        assert not moved, moved
        assert parts.keys() == ranks[0][0].keys()
    for key, (shape, _) in ranks[0][0].items():
        held: dict[int, torch.Tensor] = {}
        numbers = set()
        for parts, _ in ranks:
            for box, copies, copy in parts[key][1]:
                count = held.setdefault(copy, torch.zeros(shape))
                count[tuple(slice(a, b) for a, b in box)] += 1
                numbers.add(copies)
        assert held.keys() == set(range(max(numbers))) and len(numbers) == 1, key
        assert all(bool((count == 1).all()) for count in held.values()), key


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "world", "more"),
    [
        ("fsdp", 2, ()),
        pytest.param("hsdp", 4, (), marks=pytest.mark.full),
        ("fsdp", 4, ("system.tp=2",)),
    ],
)
def test_what_lies_in_the_hosts_memory_computes_the_same(tmp_path, strategy, world, more):
    """system.offload=all, with a frozen layer, a follower and micro-batches: equal to the bit."""
    keys = ("steps=6", "system.micro_batch=4", *more)
    for name, offload in (("here", "none"), ("host", "all")):
        key = f"system.offload={offload}"
        train_on_ranks(tmp_path / name, world, strategy, key, *keys, recipe="dino_vit_s16")
    assert losses(tmp_path / "here") == losses(tmp_path / "host")
    assert_same_bits(tmp_path / "here", tmp_path / "host")


def test_fsdp_is_asked_to_use_the_hosts_memory():
    """On the CPU that is the same memory: the policy is what can be seen."""
    for offload, expected in (("none", False), ("all", True)):
        assert all(on_ranks(2, offloads, offload)) is expected


def offloads(offload: str) -> bool:
    from vtx_scale.strategies.apply import apply, strategy_of

    gathered()
    run = override(find("clip_vit_b32", smoke=True), ["system.strategy=fsdp"])
    system = replace(run.system, offload=offload)
    parallel = strategy_of(system, 2, torch.device("cpu"), None)
    objective: Any = build_objective(run, torch.float32, parallel.data)
    apply(objective, parallel, system)
    groups = [g for part in parallel.sharded for g in part._get_fsdp_state()._fsdp_param_groups]
    found = {p.offload_to_cpu for g in groups for p in g.fsdp_params}
    assert len(found) == 1
    return found.pop()
