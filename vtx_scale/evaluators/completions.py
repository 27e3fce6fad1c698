"""Pictures that a model draws to the end (Chen et al. 2020, figure 1):
a row each of itself, what was given, and draws.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.distributed.ranks import Ranks

SHOWN, DRAWS = 4, 4
GREY = 128


def completions(
    probes: dict[str, Callable[..., Any]],
    batches: Iterable[Batch],
    classes: list[str] | None,
    ranks: Ranks,
) -> dict[str, Any]:
    """`picture`, uint8 (4 S, 6 S, 3): four validation pictures,
    each beside its upper half and four draws from there; and the number of pictures.

    Raises UserError where the objective has no probe "complete".
    """
    if "complete" not in probes:
        raise UserError("completions needs an objective with a probe 'complete': a causal iGPT.")
    batch = next(iter(batches))
    # masked ones last: every rank draws
    order = torch.argsort(batch.valid.int(), descending=True, stable=True)[:SHOWN]
    own = batch["image"][order]
    half = own.shape[1] // 2
    given = own.clone()
    given[:, half:] = GREY
    drawn = probes["complete"](own.repeat_interleave(DRAWS, 0), half * own.shape[2])
    drawn = drawn.to(torch.uint8).unflatten(0, (len(own), DRAWS))
    rows = torch.cat([own[:, None], given[:, None], drawn], dim=1)[: int(batch.valid.sum())]
    scores: dict[str, Any] = {"samples": len(rows)}
    if len(rows):
        scores["picture"] = (
            rows.permute(0, 2, 1, 3, 4).flatten(2, 3).flatten(0, 1).contiguous().numpy()
        )
    return scores
