"""Image-text retrieval: how often a caption's image (an image's caption) is among the k nearest."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.distributed.ranks import Ranks
from vtx_scale.evaluators.sheets import Cell, sheet

HIGHER = ("image_to_text@*", "text_to_image@*")
SHOWN, COLUMNS, NEAREST = 12, 3, 5  # pictures, in a row, and captions of each
WIDE = 320  # pixels of a picture at least


def retrieval(
    probes: dict[str, Callable[..., Any]],
    batches: Iterable[Batch],
    classes: list[str] | None,
    ranks: Ranks,
    ks: tuple[int, ...] = (1, 5, 10),
) -> dict[str, Any]:
    """image_to_text@k and text_to_image@k over all valid samples; and `nearest`, pictures with the
    captions that lie nearest to them, where the objective has a probe "words".

    A caption that stands twice counts as found with either.

    Raises UserError where there are no samples.
    """
    if "encode_text" not in probes:
        raise UserError(
            "retrieval needs an objective that reads texts (CLIP, SigLIP): use knn or linear."
        )
    images, texts, tokens, valid = [], [], [], []
    shown: list[tuple[Tensor, Tensor, Tensor]] = []
    for batch in batches:
        mine = probes["encode_image"](batch["image"])
        own = batch.valid.nonzero().flatten().tolist()[: SHOWN - len(shown)]
        shown += [(batch["image"][i], mine[i], batch["tokens"][i]) for i in own]
        images.append(ranks.gather_plain(mine))
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
    scores: dict[str, Any] = {"samples": len(image_NE)}
    for name, table in (("image_to_text", similar_NN), ("text_to_image", similar_NN.T)):
        near = table.topk(min(max(ks), len(table)), dim=1).indices
        # not a number finds nothing
        hit = (caption_N[near] == caption_N[:, None]) & table.isfinite().all(1, keepdim=True)
        scores |= {f"{name}@{k}": hit[:, :k].any(1).float().mean().item() for k in ks}
    if "words" in probes and shown:
        cells = nearest(shown, text_NE, token_NT, probes["words"])
        rows = [cells[i : i + COLUMNS] for i in range(0, len(cells), COLUMNS)]
        scores["nearest"] = sheet(rows, WIDE)
    return scores


def nearest(
    shown: list[tuple[Tensor, Tensor, Tensor]],
    text_NE: Tensor,
    token_NT: Tensor,
    words: Callable[[Tensor], list[str]],
) -> list[Cell]:
    """Pictures, each over its own caption and the captions that lie nearest, with how near they
    lie; one that is its own stands behind a star.

    shown: pixels uint8 (S, S, 3), vector (E,) and tokens (T,) of each.
    """
    caption_MT, at_N = torch.unique(token_NT, dim=0, return_inverse=True)
    first_M = torch.full((len(caption_MT),), len(at_N), dtype=torch.int64)
    first_M = first_M.scatter_reduce(0, at_N, torch.arange(len(at_N)), "amin")
    cells: list[Cell] = []
    for pixels, image_E, own_T in shown:
        near = (text_NE[first_M] @ image_E).topk(min(NEAREST, len(caption_MT)))
        written = words(torch.cat([own_T[None], caption_MT[near.indices]]))
        stars = ["*" if bool((t == own_T).all()) else "" for t in caption_MT[near.indices]]
        lines = [
            f"{value:.2f}{star} {text}"
            for value, star, text in zip(near.values.tolist(), stars, written[1:], strict=True)
        ]
        cells.append((pixels.cpu().numpy(), "\n".join([written[0], *lines])))
    return cells
