"""Pictures that a model draws for captions: a row each, the true picture first."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.distributed.ranks import Ranks

SHOWN, DRAWS = 4, 4


def samples(
    probes: dict[str, Callable[..., Any]],
    batches: Iterable[Batch],
    classes: list[str] | None,
    ranks: Ranks,
) -> dict[str, Any]:
    """`picture`, uint8 (4 S, 5 S, 3): four validation pictures,
    each beside four draws for its caption; and their number.

    Raises UserError where the objective has no probe "sample".
    """
    if "sample" not in probes:
        raise UserError(
            "samples needs an objective that draws pictures for captions (DALL-E): "
            "use completions or another."
        )
    batch = next(iter(batches))
    # masked ones last: every rank draws
    order = torch.argsort(batch.valid.int(), descending=True, stable=True)[:SHOWN]
    texts = tuple(batch[name][order].repeat_interleave(DRAWS, 0) for name in ("tokens", "length"))
    drawn = probes["sample"](texts).round().to(torch.uint8).unflatten(0, (len(order), DRAWS))
    if "codes" in batch:  # the picture as its codes have it
        side = math.isqrt(batch["codes"].shape[1])
        codes = batch["codes"][order].view(len(order), side, side)
        true = probes["decode"](codes).round().to(torch.uint8)
    else:
        true = batch["image"][order]
    rows = torch.cat([true[:, None], drawn], dim=1)[: int(batch.valid.sum())]
    scores: dict[str, Any] = {"samples": len(rows)}
    if len(rows):
        scores["picture"] = (
            rows.permute(0, 2, 1, 3, 4).flatten(2, 3).flatten(0, 1).contiguous().numpy()
        )
    return scores
