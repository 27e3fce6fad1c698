"""Image-text retrieval: how often a caption's image (an image's caption) is among the k nearest."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from data_pipeline.errors import UserError


def retrieval(probes: dict[str, Callable[..., Any]], batches: Iterable[Any], classes: list[str] | None = None,
              ks: tuple[int, ...] = (1, 5, 10)) -> dict[str, float]:
    """image_to_text@k and text_to_image@k over all valid samples. A caption that stands twice counts as found with either.

    Raises UserError where there are no samples.
    """
    images, texts, tokens = [], [], []
    for batch in batches:
        if batch.valid.any():
            images.append(probes["encode_image"](batch["image"][batch.valid]))
            tokens.append(batch["tokens"][batch.valid].cpu())
            texts.append(probes["encode_text"](batch["tokens"][batch.valid]))
    if not images:
        raise UserError("retrieval found no valid validation sample.")
    image_NE, text_NE, token_NT = torch.cat(images), torch.cat(texts), torch.cat(tokens)
    caption_N = torch.unique(token_NT, dim=0, return_inverse=True)[1]
    similar_NN = image_NE @ text_NE.T
    scores: dict[str, float] = {"samples": len(image_NE)}
    for name, table in (("image_to_text", similar_NN), ("text_to_image", similar_NN.T)):
        near = table.topk(min(max(ks), len(table)), dim=1).indices
        hit = caption_N[near] == caption_N[:, None]
        scores |= {f"{name}@{k}": hit[:, :k].any(1).float().mean().item() for k in ks}
    return scores
