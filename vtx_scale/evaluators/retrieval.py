"""Image-text retrieval: how often a caption's image (an image's caption) is among the k nearest."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.distributed.ranks import Ranks

HIGHER = ("image_to_text@*", "text_to_image@*")


def retrieval(
    probes: dict[str, Callable[..., Any]],
    batches: Iterable[Batch],
    classes: list[str] | None,
    ranks: Ranks,
    ks: tuple[int, ...] = (1, 5, 10),
) -> dict[str, float]:
    """image_to_text@k and text_to_image@k over all valid samples.

    A caption that stands twice counts as found with either.

    Raises UserError where there are no samples.
    """
    if "encode_text" not in probes:
        raise UserError(
            "retrieval needs an objective that reads texts (CLIP, SigLIP): use knn or linear."
        )
    images, texts, tokens, valid = [], [], [], []
    for batch in batches:
        images.append(ranks.gather_plain(probes["encode_image"](batch["image"])))
        texts.append(ranks.gather_plain(probes["encode_text"](batch["tokens"])))
        tokens.append(ranks.gather_plain(batch["tokens"]))
        valid.append(ranks.gather_plain(batch.valid))
    keep = torch.cat(valid) if valid else torch.zeros(0, dtype=torch.bool)
    if not keep.any():
        raise UserError(
            "retrieval found no valid validation sample: look at them with 'vtx data verify'."
        )
    image_NE, text_NE, token_NT = (
        torch.cat(images)[keep],
        torch.cat(texts)[keep],
        torch.cat(tokens)[keep],
    )
    caption_N = torch.unique(token_NT, dim=0, return_inverse=True)[1]
    similar_NN = image_NE @ text_NE.T
    scores: dict[str, float] = {"samples": len(image_NE)}
    for name, table in (("image_to_text", similar_NN), ("text_to_image", similar_NN.T)):
        near = table.topk(min(max(ks), len(table)), dim=1).indices
        # not a number finds nothing
        hit = (caption_N[near] == caption_N[:, None]) & table.isfinite().all(1, keepdim=True)
        scores |= {f"{name}@{k}": hit[:, :k].any(1).float().mean().item() for k in ks}
    return scores
