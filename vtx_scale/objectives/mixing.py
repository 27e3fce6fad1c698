"""Erasing, mixup and CutMix on a rank's whole batch, before it is cut into micro-batches.

n slots, V views of each. The partner of a slot is its neighbour, slot xor 1, whatever rank it lies
on; a slot whose partner is masked or absent stays as it is. All numbers belong to the seed, the
step and the slot.
"""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vtx_scale.blocks.random import step_key
from vtx_scale.blocks.slots import VIEWS, SlotContext
from vtx_scale.data_pipeline.augment.erase import ERASE_WORDS, erase_box
from vtx_scale.data_pipeline.augment.mixing import Mix, mix_parameters
from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.distributed.ranks import Ranks
from vtx_scale.objectives.base import Context
from vtx_scale.objectives.pixels import STATISTICS


def partners(x: Tensor, ranks: Ranks) -> Tensor:
    """(n, ...) of each rank -> the rows of the slots' partners; zeros where there is none."""
    n = len(x)
    first = ranks.rank * n
    own = torch.arange(n, device=x.device)
    out = x[(((first + own) ^ 1) - first).clamp(0, n - 1)]
    # one slot has its partner on another rank: the first where its number is odd, else the last
    if n % 2:
        edges = ranks.gather_plain(torch.stack([x[0], x[-1]]))
        row, edge = (0, 2 * ranks.rank - 1) if first % 2 else (n - 1, 2 * ranks.rank + 2)
        out[row] = edges[edge] if edge < len(edges) else torch.zeros_like(x[0])
    return out


def erase(
    images: Tensor, u: NDArray[np.float64], share: float, kind: str, slots: SlotContext
) -> None:
    """In place, (n V, S, S, 3) float: in a `share` of the pictures a box of noise,
    standard normal after normalisation.

    u (n V, 1 + ERASE_WORDS): whether, and where.
    """
    boxes = {
        i: box
        for i in np.flatnonzero(u[:, 0] < share).tolist()
        if (box := erase_box(u[i, 1:], images.shape[1]))
    }
    if not boxes:
        return
    at = torch.tensor(list(boxes), device=images.device)
    some = replace(slots, valid=slots.valid[at], number=slots.number[at])
    mean, std = (
        torch.tensor(x, device=images.device, dtype=images.dtype) * 255 for x in STATISTICS[kind]
    )
    noise = some.normal("noise", *images.shape[1:]).to(images.dtype) * std + mean
    for k, (i, (top, left, h, w)) in enumerate(boxes.items()):
        images[i, top : top + h, left : left + w] = noise[k, top : top + h, left : left + w]


def mix_images(images: Tensor, other: Tensor, has: Tensor, drawn: Mix) -> Tensor:
    """(n, V, S, S, 3) and the partners' -> what the network sees;
    rows without a partner as they are.
    """
    if drawn.kind == "mixup":
        weight_n = torch.where(
            has.view(-1, 1, 1, 1, 1), images.new_tensor(drawn.weight), images.new_tensor(1.0)
        )
        return other.lerp(images, weight_n)
    top, left, h, w = drawn.box
    inside = torch.zeros(images.shape[2:4], dtype=torch.bool, device=images.device)
    inside[top : top + h, left : left + w] = True
    return torch.where(inside[..., None] & has.view(-1, 1, 1, 1, 1), other, images)


def mix(
    batch: Batch, context: Context, kind: str, step: int, name: str, dtype: torch.dtype
) -> Batch:
    """`batch` with its images erased and mixed as `context.augment` says;
    the labels `name` also of the partner.

    dtype: the parameters'.

    What came in as uint8 goes out as float of 0..255. weight (n,) is the share of a slot's own
    labels, "other NAME" are the partner's.
    """
    augment, seed = context.augment, context.seed
    if not (augment.erase or augment.mixup or augment.cutmix):
        return batch
    slots = context.slots(batch, step, augment.repeats)
    images = batch["image"].to(
        torch.promote_types(dtype, torch.float32), memory_format=torch.contiguous_format
    )
    if images.ndim == 4:
        images = images[:, None]
    n, V = images.shape[:2]
    if augment.erase:
        # drawn on the host, from numbers that are known there: to fetch them from a GPU would wait
        # for all its work
        number = (slots.ranks.rank * n + torch.arange(n))[:, None] * VIEWS + torch.arange(V)
        host = replace(slots, number=number.flatten(), key=step_key(seed, step))
        u = host.uniform("erase", 1 + ERASE_WORDS).numpy().astype(np.float64)
        # a view of what was copied just now
        erase(images.flatten(0, 1), u, augment.erase, kind, slots)
    data = {**batch.data, "image": images if batch["image"].ndim == 5 else images[:, 0]}
    drawn = mix_parameters(
        seed,
        step,
        augment.mixup,
        augment.cutmix,
        augment.mix_share,
        augment.cutmix_share,
        images.shape[2],
    )
    if drawn.kind != "none":
        has = batch.valid & partners(batch.valid.to(torch.uint8), slots.ranks).bool()
        images = mix_images(images, partners(images, slots.ranks), has, drawn)
        data["image"] = images if batch["image"].ndim == 5 else images[:, 0]
        data["weight"] = torch.where(has, images.new_tensor(drawn.weight), images.new_tensor(1.0))
        data[f"other {name}"] = partners(batch[name], slots.ranks)
    return replace(batch, data=data)
