"""Top-1 and top-5 of a classifier; where samples have several labels,
whether its first answer is one of them.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.distributed.ranks import Ranks
from vtx_scale.evaluators.mistakes import Mistakes

HIGHER = ("top1", "top5")


def accuracy(
    probes: dict[str, Callable[..., Any]],
    batches: Iterable[Batch],
    classes: list[str] | None,
    ranks: Ranks,
) -> dict[str, Any]:
    """top1, top5 (where there are more than five classes) and the number of labelled samples; where
    each has one label, `confusion` of up to 100 classes and the most confident `mistakes`.

    Raises UserError without a classifier or without labels.
    """
    if "classify" not in probes:
        raise UserError(
            "accuracy needs a classifier, which this objective has not: "
            "use knn, linear or few_shot."
        )
    counts, K = torch.zeros(3, dtype=torch.int64), 0
    mistakes = Mistakes(classes)
    for batch in batches:
        label = batch["labels"] if "labels" in batch else batch["label"][:, None]
        logits = probes["classify"](batch["image"])
        K = logits.shape[1]
        near = logits.topk(min(5, K), dim=1).indices
        hit = ((near[:, :, None] == label[:, None]) & (label[:, None] >= 0)).any(
            2
        ) & logits.isfinite().all(1, keepdim=True)
        labelled = batch.valid & (label >= 0).any(1)
        counts += torch.stack([labelled, labelled & hit[:, 0], labelled & hit.any(1)]).sum(1)
        if "labels" not in batch:
            mistakes.add(batch["image"], logits.float().softmax(1), batch["label"], batch.valid)
    count, top1, top5 = ranks.sum(counts).tolist()
    if not count:
        raise UserError(
            "accuracy found no labels (cls members) in the validation shards: "
            "give shards that have them."
        )
    scores = {"top1": top1 / count, "samples": count}
    return scores | ({"top5": top5 / count} if K > 5 else {}) | mistakes.pictures(ranks)
