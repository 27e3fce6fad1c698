"""Erasing and mixing on a rank's batch: what changes, how often,
and that it hangs on the slot alone.
"""

from dataclasses import replace

import torch

from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.distributed.ranks import Ranks
from vtx_scale.launch import recipes
from vtx_scale.launch.build import build_objective
from vtx_scale.objectives.base import Context
from vtx_scale.objectives.mixing import mix, partners
from vtx_scale.objectives.pixels import normalised
from vtx_scale.specs.run import Augment

SLOTS, SIDE = 200, 16


class Second(Ranks):
    """The second of two ranks, for what needs no message."""

    rank, world = 1, 2


def objective(augment, ranks=None):
    run = recipes.find("deit_s16", smoke=True)
    return build_objective(
        replace(run, data=replace(run.data, augment=augment)), torch.float32, ranks
    )


def batch(views=1):
    shape = (SLOTS, *((views,) if views > 1 else ()), SIDE, SIDE, 3)
    image = torch.randint(
        0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    slot = torch.arange(SLOTS)
    return Batch(
        {"image": image, "label": slot % 10},
        torch.ones(SLOTS, dtype=torch.bool),
        slot,
        torch.zeros_like(slot),
        slot,
    )


def changed(mixed, before):
    return (mixed["image"] != before["image"].float()).any(-1).flatten(0, -3)  # (B, S, S)


def test_erasing_changes_a_box_in_its_share_of_the_pictures():
    plain = batch(views=2)
    mixed = objective(Augment(erase=0.25, repeats=2)).prepare(plain, 3)
    at = changed(mixed, plain)
    assert abs(at.flatten(1).any(1).float().mean() - 0.25) < 0.08
    for box in at[at.flatten(1).any(1)]:
        rows, columns = box.any(1).nonzero(), box.any(0).nonzero()
        inside = box[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert inside.float().mean() > 0.98, "a box, all of it noise"
        assert 0.01 < inside.numel() / SIDE**2 < 0.4
    noise = normalised(mixed["image"].flatten(0, 1), "imagenet", torch.float32).permute(0, 2, 3, 1)[
        at
    ]
    assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05
    assert torch.equal(plain["image"], batch(views=2)["image"]), "what came in stays"


def test_it_hangs_on_the_slot_and_the_step():
    augment = Augment(erase=0.5, mixup=0.8)
    whole = objective(augment).prepare(batch(), 3)
    half = objective(augment, Second()).prepare(batch().part(SLOTS // 2, SLOTS), 3)
    for name in ("image", "weight", "other label"):
        assert torch.equal(half[name], whole[name][SLOTS // 2 :]), name
    assert not torch.equal(objective(augment).prepare(batch(), 4)["image"], whole["image"])


def test_a_partner_is_the_neighbour_and_a_masked_one_leaves_its_slot_alone():
    plain = batch()
    plain.valid[5] = False
    mixed = mix(plain, Context(augment=Augment(mixup=0.8)), "imagenet", 3, "label", torch.float32)
    assert mixed["weight"][4] == 1 and torch.equal(mixed["image"][4], plain["image"][4].float())
    assert torch.equal(mixed["other label"], plain["label"].view(-1, 2).flip(1).flatten())
    w = mixed["weight"][0]
    assert 0 < w < 1
    assert torch.allclose(
        mixed["image"][0], w * plain["image"][0] + (1 - w) * plain["image"][1], atol=1e-3
    )
    assert partners(torch.arange(5) + 1, Ranks()).tolist() == [2, 1, 4, 3, 0], (
        "the last of an odd batch has none"
    )


def test_nothing_is_done_where_nothing_is_asked():
    plain = batch()
    assert objective(Augment()).prepare(plain, 3) is plain
