"""Few-shot accuracy as ViT reports it (Dosovitskiy et al. 2021, arXiv:2010.11929,
section 4.1; numbers of `fewshot_lsr`): least squares with a ridge from features to targets -1
and +1, in closed form.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vtx_scale.data_pipeline.order import draws
from vtx_scale.distributed.ranks import Ranks
from vtx_scale.evaluators.features import DRAWS, Features, on_features, table, top1

HIGHER = ("top1@*",)
BIAS = 100.0  # the feature that is appended


@on_features
def few_shot(
    train: Features,
    val: Features,
    classes: list[str] | None,
    ranks: Ranks,
    shots: tuple[int, ...] = (1, 5, 10, 25),
    seeds: int = 3,
    l2: float = 2.0**10,
) -> dict[str, float]:
    """top1@s for each number of shots that every class has, the mean over `seeds` draws;
    and the samples.
    """
    ids, labels = table(train, ranks)
    kinds = int(labels.max()) + 1
    least = int(torch.unique(labels, return_counts=True)[1].min())
    scores: dict[str, float] = {}
    for s in (s for s in shots if s <= least):
        results = [
            once(train, val, ids, labels, drawn(ids, labels, s, seed), kinds, l2, ranks)
            for seed in range(seeds)
        ]
        scores[f"top1@{s}"] = sum(m["top1"] for m in results) / seeds
    return scores | {"samples": int(ranks.sum(torch.tensor(len(val.x))))}


def drawn(ids: Tensor, labels: Tensor, shots: int, seed: int) -> Tensor:
    """The places (m,) in `ids` of `shots` samples a class:
    keyed by seed and class, so that no world changes them.
    """
    picked = []
    for kind in torch.unique(labels).tolist():
        own = (labels == kind).nonzero().flatten()
        picked.append(
            own[torch.from_numpy(draws(seed, DRAWS, 2, kind, 0, len(own)).argsort(kind="stable"))][
                :shots
            ]
        )
    return torch.cat(picked)


def once(
    train: Features,
    val: Features,
    ids: Tensor,
    labels: Tensor,
    picked: Tensor,
    kinds: int,
    l2: float,
    ranks: Ranks,
) -> dict[str, float]:
    where = torch.full((len(ids),), -1)
    where[picked] = torch.arange(len(picked))
    row = where[torch.searchsorted(ids, train.id)]  # of the few that a rank holds
    x = torch.zeros(len(picked), train.x.shape[1], dtype=torch.float64)
    x[row[row >= 0]] = train.x[row >= 0].double()
    x = ranks.sum(x)  # each row is held by one rank
    mean, std = x.mean(0), x.std(0, correction=0) + 1e-5
    weight = ridge(whitened(x, mean, std), 2.0 * F.one_hot(labels[picked], kinds).double() - 1, l2)
    return top1((whitened(val.x, mean, std) @ weight).argmax(1), val, ranks)


def whitened(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(n, C) -> (n, C + 1) float64."""
    return F.pad((x - mean) / std, (0, 1), value=BIAS)


def ridge(x: Tensor, y: Tensor, l2: float) -> Tensor:
    """(C, K): least |x w - y|^2 + l2 |w|^2, by the smaller of the two Gram matrices.
    x (m, C), y (m, K).
    """
    m, c = x.shape
    if c <= m:
        small: Tensor = torch.linalg.solve(x.T @ x + l2 * torch.eye(c, dtype=x.dtype), x.T @ y)
        return small
    dual: Tensor = torch.linalg.solve(x @ x.T + l2 * torch.eye(m, dtype=x.dtype), y)
    return x.T @ dual
