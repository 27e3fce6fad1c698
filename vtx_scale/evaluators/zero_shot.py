"""Zero-shot classification (Radford et al. 2021, section 3.1):
the class whose prompts lie nearest to the image.

Departs from the paper in its prompts: eight general ones, where the published figures come from 80
made for ImageNet.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F

from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.distributed.ranks import Ranks
from vtx_scale.evaluators.mistakes import Mistakes

HIGHER = ("top1", "top5")
TEMPLATES = (
    "{}",
    "a {}",
    "a photo of a {}",
    "a picture of a {}",
    "a handwritten {}",
    "the digit {}",
    "a small {}",
    "a large {}",
)


def class_embeddings(
    encode_text: Callable[..., torch.Tensor], classes: list[str], templates: tuple[str, ...]
) -> torch.Tensor:
    """(classes, E): each prompt of unit length, their mean, unit length again."""
    prompts = [t.format(c) for c in classes for t in templates]
    embeddings = torch.cat([encode_text(prompts[i : i + 64]) for i in range(0, len(prompts), 64)])
    return F.normalize(embeddings.view(len(classes), len(templates), -1).mean(1), dim=-1)


def zero_shot(
    probes: dict[str, Callable[..., Any]],
    batches: Iterable[Batch],
    classes: list[str] | None,
    ranks: Ranks,
    templates: tuple[str, ...] = TEMPLATES,
) -> dict[str, Any]:
    """top1, top5 (where there are more than five classes) and the number of labelled samples;
    `confusion` of up to 100 classes, and the `mistakes` that lie nearest to what they are not.

    Raises UserError without class names or labels.
    """
    if "encode_text" not in probes:
        raise UserError(
            "zero_shot needs an objective that reads texts (CLIP, SigLIP): "
            "use accuracy, knn or linear."
        )
    if not classes:
        raise UserError(
            "zero_shot needs classes.txt beside the validation shards: "
            "a class name a line, in the order of cls."
        )
    text_KE = class_embeddings(probes["encode_text"], classes, templates)
    # samples with a label, of them first, of them among five
    counts = torch.zeros(3, dtype=torch.int64)
    mistakes = Mistakes(classes, len(classes))
    for batch in batches:
        label = batch["label"]
        similar_NK = probes["encode_image"](batch["image"]) @ text_KE.T
        near = similar_NK.topk(min(5, len(classes)), dim=1).indices
        # not a number is never right
        hit = (near == label[:, None]) & similar_NK.isfinite().all(1, keepdim=True)
        labelled = batch.valid & (label >= 0) & (label < len(classes))
        counts += torch.stack([labelled, labelled & hit[:, 0], labelled & hit.any(1)]).sum(1)
        mistakes.add(batch["image"], similar_NK, label, batch.valid)
    count, top1, top5 = ranks.sum(counts).tolist()
    if not count:
        raise UserError("zero_shot found no labels (cls members) in the validation shards.")
    scores = {"top1": top1 / count, "samples": count}
    more = {"top5": top5 / count} if len(classes) > 5 else {}
    return scores | more | mistakes.pictures(ranks)
