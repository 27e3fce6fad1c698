"""The linear probe by SGD, as DINO's eval_linear (Caron et al. 2021, arXiv:2104.14294, appendix).

Departs: the features are made once, without random crops and flips, and the rate falls every step,
not every epoch.
"""

import math

import torch

from vtx_scale.data_pipeline.order import draws
from vtx_scale.distributed.ranks import Ranks
from vtx_scale.evaluators.features import DRAWS, Features, on_features, table, top1
from vtx_scale.evaluators.linear import logits, loss_and_gradient

HIGHER = ("top1",)


@on_features
def linear_sgd(
    train: Features,
    val: Features,
    classes: list[str] | None,
    ranks: Ranks,
    epochs: int = 100,
    batch: int = 1024,
    lr: float = 1e-3,
    seed: int = 0,
) -> dict[str, float]:
    """top1 and the samples.

    Momentum 0.9, no decay, rate lr x batch / 256 on a cosine to 0, features as they are.

    A batch is the same samples in every world: each rank adds the gradient of those of them
    that it holds.
    """
    ids, labels = table(train, ranks)
    n, batch = len(ids), min(batch, len(ids))
    steps_an_epoch = -(-n // batch)
    place = torch.searchsorted(ids, train.id)
    start = torch.Generator().manual_seed(seed)
    weight = torch.zeros(int(labels.max()) + 1, train.x.shape[1] + 1, dtype=torch.float64)
    weight[:, :-1] = torch.randn(weight[:, :-1].shape, generator=start) * 0.01
    momentum = torch.zeros_like(weight)
    for epoch in range(epochs):
        shuffled = torch.from_numpy(draws(seed, DRAWS, 1, epoch, 0, n).argsort(kind="stable"))
        at, rows = shuffled.argsort()[place].sort()  # where this rank's samples stand in the epoch
        cuts = torch.searchsorted(at, torch.arange(0, n + batch, batch)).tolist()
        for t in range(steps_an_epoch):
            mine = rows[cuts[t] : cuts[t + 1]]
            whole = ranks.sum(loss_and_gradient(weight, train.x[mine], train.label[mine]))[
                1:
            ].view_as(weight)
            momentum = 0.9 * momentum + whole / min(batch, n - t * batch)
            done = (epoch * steps_an_epoch + t) / (epochs * steps_an_epoch)
            weight -= lr * batch / 256 * 0.5 * (1 + math.cos(math.pi * done)) * momentum
    return top1(logits(weight, val.x).argmax(1), val, ranks)
