"""Where the class token looks (Caron et al. 2021, arXiv:2104.14294, section 4.2.2):
masks from attention, and pictures.

A head's mask is the smallest set of patches that holds 60 % of its mass. Departs: masks are
compared at the size of the picture, patches as squares.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.order import draws
from vtx_scale.distributed.ranks import Ranks
from vtx_scale.evaluators.features import DRAWS

HIGHER = ("jaccard_best_head", "jaccard_mean_head")
SHOWN = 8  # pictures
# viridis at 0, 1/4 .. 1
COLOURS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))


def attention(
    probes: dict[str, Callable[..., Any]],
    batches: Iterable[Batch],
    classes: list[str] | None,
    ranks: Ranks,
    share: float = 0.6,
) -> dict[str, Any]:
    """Overlap (Jaccard) of the heads' masks with the object, over the samples that have a mask;
    and `picture`.

    jaccard_best_head: the head that fits the image best; jaccard_mean_head: the mask of the
    heads' mean; jaccard_random: the best of as many masks from random mass. Without masks there
    are no numbers but samples, 0. probes["attention"]: uint8 (N, S, S, 3) ->
    (N, heads, grid, grid). batch["mask"] (N, S, S): above 0 is object. Raises UserError where the
    objective has no such probe.
    """
    if "attention" not in probes:
        raise UserError(
            "attention needs an objective with a probe of that name: "
            "one of a ViT with a class token."
        )
    sums, shown = torch.zeros(4, dtype=torch.float64), list[tuple[Tensor, Tensor]]()
    for batch in batches:
        mass = probes["attention"](batch["image"])
        if len(shown) < SHOWN:
            shown += [
                (batch["image"][i], mass[i]) for i in batch.valid.nonzero().flatten().tolist()
            ][: SHOWN - len(shown)]
        if "mask" not in batch:
            continue
        object_NSS = batch["mask"] > 0
        keep = batch.valid & object_NSS.flatten(1).any(1)
        chance = torch.stack([random_mass(i, mass[0].shape) for i in batch.ids.tolist()])
        for i, m in enumerate((mass, mass.mean(1, keepdim=True), chance)):
            sums[i] += jaccard(held(m, share), object_NSS).max(1).values[keep].sum()
        sums[3] += keep.sum()
    best, mean, random, count = ranks.sum(sums).tolist()
    scores: dict[str, Any] = {"samples": int(count)}
    if count:
        scores |= {
            "jaccard_best_head": best / count,
            "jaccard_mean_head": mean / count,
            "jaccard_random": random / count,
        }
    if shown:
        scores["picture"] = attention_pictures(
            torch.stack([p for p, _ in shown]), torch.stack([m for _, m in shown])
        )
    return scores


def random_mass(sample: int, shape: torch.Size) -> Tensor:
    """Uniform numbers that belong to the sample, so that every world has the same."""
    words = draws(0, DRAWS, 3, sample & 0xFFFFFFFF, 0, shape.numel())
    return torch.from_numpy((words >> np.uint64(40)).astype(np.float32)).view(shape) + 1


def held(mass: Tensor, share: float) -> Tensor:
    """bool (N, heads, grid, grid): the fewest patches whose mass is at least `share`
    of the head's.
    """
    flat = mass.double().flatten(2)
    sorted_, turn = flat.sort(dim=2, descending=True, stable=True)
    before = sorted_.cumsum(2) - sorted_  # of the patches that come first
    keep = before < share * flat.sum(2, keepdim=True)
    return torch.zeros_like(keep).scatter(2, turn, keep).view(mass.shape)


def enlarged(x: Tensor, size: int) -> Tensor:
    """(..., grid, grid) -> (..., size, size), the nearest."""
    at = torch.arange(size) * x.shape[-1] // size
    return x[..., at, :][..., at]


def jaccard(mask: Tensor, objects: Tensor) -> Tensor:
    """(N, heads): intersection over union. mask (N, heads, grid, grid), objects (N, S, S)."""
    big = enlarged(mask, objects.shape[-1]).flatten(2)
    own = objects.flatten(1)[:, None]
    return (big & own).sum(2).double() / (big | own).sum(2).clamp(min=1)


def coloured(x: Tensor) -> Tensor:
    """[0, 1] -> uint8 (..., 3), between the nearest two of COLOURS."""
    stops = torch.tensor(COLOURS, dtype=torch.float32)
    at = x.float().clamp(0, 1) * (len(stops) - 1)
    low = at.long().clamp(max=len(stops) - 2)
    return torch.lerp(stops[low], stops[low + 1], (at - low)[..., None]).round().to(torch.uint8)


def attention_pictures(pixels: Tensor, attention: Tensor) -> NDArray[np.uint8]:
    """uint8 (N S, (1 + heads) S, 3): a row an image, first itself,
    then each head's mass over its largest.

    pixels uint8 (N, S, S, 3), attention (N, heads, grid, grid).
    """
    scaled = attention / attention.amax((2, 3), keepdim=True).clamp(min=1e-12)
    heads = coloured(enlarged(scaled, pixels.shape[1]))  # (N, heads, S, S, 3)
    rows = torch.cat([pixels[:, None].cpu(), heads], dim=1)
    whole = rows.permute(0, 2, 1, 3, 4).flatten(2, 3).flatten(0, 1)
    pictures: NDArray[np.uint8] = whole.contiguous().numpy()
    return pictures
