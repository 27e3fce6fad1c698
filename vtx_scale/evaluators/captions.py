"""Whether the captions that a model writes are those of the samples, word for word."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.distributed.ranks import Ranks

HIGHER = ("exact", "right")


def captions(
    probes: dict[str, Callable[..., Any]],
    batches: Iterable[Batch],
    classes: list[str] | None,
    ranks: Ranks,
) -> dict[str, float]:
    """exact, the share of samples whose caption is written token for token (the first, where
    there are several); right, the share of tokens that are right where they stand; and the
    number of samples.

    Raises UserError where the objective writes no captions, or without samples.
    """
    if "caption_ids" not in probes:
        raise UserError(
            "captions needs an objective that writes them (VirTex): use another evaluator."
        )
    counts = torch.zeros(4, dtype=torch.float64)
    for batch in batches:
        found, wanted = probes["caption_ids"](batch["image"]), batch["tokens"].long()
        there = torch.arange(wanted.shape[1]) < batch["length"][:, None]
        same = (found == wanted) & there
        exact = (found == torch.where(there, wanted, torch.zeros_like(wanted))).all(1)
        keep = batch.valid
        counts += torch.stack(
            [exact[keep].sum(), same[keep].sum(), there[keep].sum(), keep.sum()]
        ).double()
    exact_, same_, tokens, count = ranks.sum(counts).tolist()
    if not count:
        raise UserError(
            "captions found no valid validation sample: look at them with 'vtx data verify'."
        )
    return {"exact": exact_ / count, "right": same_ / max(1.0, tokens), "samples": int(count)}
