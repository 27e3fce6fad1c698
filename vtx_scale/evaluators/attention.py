"""Where the class token looks (Caron et al. 2021, arXiv:2104.14294, section 4.2.2):
masks from attention, and pictures.

A head's mask is the smallest set of patches that holds 60 % of its mass. Departs: masks are
compared at the size of the picture, patches as squares.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.order import draws
from vtx_scale.distributed.ranks import Ranks
from vtx_scale.evaluators.features import DRAWS
from vtx_scale.evaluators.sheets import Cell, coloured, enlarged, sheet

HIGHER = ("jaccard_best_head", "jaccard_mean_head")
CONSTANTS = ("jaccard_random",)
SHOWN = 8  # pictures


def attention(
    probes: dict[str, Callable[..., Any]],
    batches: Iterable[Batch],
    classes: list[str] | None,
    ranks: Ranks,
    share: float = 0.6,
) -> dict[str, Any]:
    """Overlap (Jaccard) of the heads' masks with the object, over the samples that have a mask;
    and `picture`, a row a sample.

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
    sums, shown = torch.zeros(4, dtype=torch.float64), list[list[Cell]]()
    for batch in batches:
        mass = probes["attention"](batch["image"])
        if len(shown) < SHOWN:
            masks = batch["mask"] if "mask" in batch else None
            shown += [
                attention_cells(
                    batch["image"][i], mass[i], None if masks is None else masks[i], share
                )
                for i in batch.valid.nonzero().flatten().tolist()[: SHOWN - len(shown)]
            ]
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
        scores["picture"] = sheet(shown)
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


def jaccard(mask: Tensor, objects: Tensor) -> Tensor:
    """(N, heads): intersection over union. mask (N, heads, grid, grid), objects (N, S, S)."""
    big = enlarged(mask, objects.shape[-1]).flatten(2)
    own = objects.flatten(1)[:, None]
    return (big & own).sum(2).double() / (big | own).sum(2).clamp(min=1)


def attention_cells(
    pixels: Tensor, mass: Tensor, object_: Tensor | None, share: float
) -> list[Cell]:
    """A row of the picture: the image, the object where it has a mask, each head's mass over its
    largest, and the mask of the heads' mean.

    pixels uint8 (S, S, 3), mass (heads, grid, grid), object_ (S, S).
    """
    size = len(pixels)
    scaled = mass / mass.amax((1, 2), keepdim=True).clamp(min=1e-12)
    heads = coloured(enlarged(scaled, size))  # (heads, S, S, 3)
    mean = enlarged(held(mass.mean(0)[None, None], share)[0, 0], size)
    found = [(pixels, "picture")]
    if object_ is not None:
        found.append((coloured((object_ > 0).float()), "object"))
    found += [(head, f"head {i + 1}") for i, head in enumerate(heads)]
    found.append((coloured(mean.float()), f"{100 * share:.0f} % of all heads"))
    return [(picture.cpu().numpy(), words) for picture, words in found]
