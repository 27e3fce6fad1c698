"""The linear probe: logistic regression by L-BFGS (as Radford et al. 2021, section 3.2),
on standardised features.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from vtx_scale.data_pipeline.order import draws
from vtx_scale.distributed.ranks import Ranks
from vtx_scale.evaluators.features import DRAWS, Features, on_features, table, top1

HIGHER = ("top1",)
CONSTANTS = ("penalty",)
SMALL = 1 << 26  # numbers in the training features up to which they are held in float64
ROWS = 16_384  # whose logits are held at once


@on_features
def linear(
    train: Features,
    val: Features,
    classes: list[str] | None,
    ranks: Ranks,
    penalties: tuple[float, ...] = (1e-3,),
    seed: int = 0,
) -> dict[str, float]:
    """top1 on the validation samples, the penalty, and the number of samples.

    penalties: l2 of mean cross-entropy + l2 / 2 |W|^2 (scikit-learn's C is 1 / (samples l2)). Of
    several, the one that does best on a keyed tenth of the training samples is taken, and fitted
    anew to all of them; the validation samples choose nothing.
    """
    ids, labels = table(train, ranks)
    kinds = int(labels.max()) + 1
    penalty = penalties[0]
    if len(penalties) > 1:
        held = torch.zeros(len(ids), dtype=torch.bool)
        held[
            torch.from_numpy(
                draws(seed, DRAWS, 0, 0, 0, len(ids)).argsort(kind="stable")[
                    : max(1, len(ids) // 10)
                ]
            )
        ] = True
        apart = held[torch.searchsorted(ids, train.id)]
        kept, chosen_on = part(train, ~apart), part(train, apart)
        found = {p: probe(kept, chosen_on, kinds, p, ranks)["top1"] for p in penalties}
        penalty = max(penalties, key=found.__getitem__)
    return probe(train, val, kinds, penalty, ranks) | {"penalty": penalty}


def part(features: Features, keep: Tensor) -> Features:
    return Features(features.x[keep], features.label[keep], features.id[keep])


def probe(
    train: Features, val: Features, kinds: int, penalty: float, ranks: Ranks
) -> dict[str, float]:
    numbers = int(ranks.sum(torch.tensor(train.x.numel())))
    dtype = torch.float64 if numbers <= SMALL else torch.float32
    mean, std = statistics(train.x, ranks)
    weight = fit(((train.x - mean) / std).to(dtype), train.label, kinds, penalty, ranks)
    return top1(logits(weight, ((val.x - mean) / std).to(dtype)).argmax(1), val, ranks)


def statistics(x: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,) float64 over all ranks' rows;
    1 for a feature that does not vary.
    """
    n = ranks.sum(torch.tensor(len(x)))
    mean = ranks.sum(x.double().sum(0)) / n
    std = (ranks.sum((x - mean).square().sum(0)) / n).sqrt()
    return mean, torch.where(std > 1e-6 * mean.abs(), std, 1.0)


def logits(weight: Tensor, x: Tensor) -> Tensor:
    """weight (K, C + 1), the bias last; x (n, C) -> (n, K)."""
    weight = weight.to(x.dtype)
    return x @ weight[:, :-1].T + weight[:, -1]


def loss_and_gradient(weight: Tensor, x: Tensor, label: Tensor) -> Tensor:
    """(1 + K (C + 1),) float64: the sum over rows of the cross-entropy, and its gradient, flat."""
    loss, gradient = torch.zeros(1, dtype=torch.float64), torch.zeros_like(weight)
    for x_nC, label_n in zip(torch.split(x, ROWS), torch.split(label, ROWS), strict=True):
        log_nK, own = logits(weight, x_nC).log_softmax(1), torch.arange(len(x_nC))
        loss -= log_nK[own, label_n].sum().double()
        error_nK = log_nK.exp()
        error_nK[own, label_n] -= 1
        gradient[:, :-1] += error_nK.T @ x_nC
        gradient[:, -1] += error_nK.sum(0)
    return torch.cat([loss, gradient.flatten()])


def fit(
    x: Tensor, label: Tensor, kinds: int, penalty: float, ranks: Ranks, steps: int = 1000
) -> Tensor:
    """(K, C + 1) float64, the bias last: least mean cross-entropy + penalty / 2 |W|^2 over
    all ranks' rows.

    Full-batch L-BFGS with a strong Wolfe search from zero; the bias goes free. The same
    on every rank.
    """
    n = ranks.sum(torch.tensor(len(x)))
    weight = torch.zeros(kinds, x.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    free = torch.ones_like(weight)
    free[:, -1] = 0
    optimizer = torch.optim.LBFGS(
        [weight],
        max_iter=steps,
        max_eval=2 * steps,
        history_size=20,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
    )

    @torch.no_grad()
    def closure() -> Tensor:
        both = ranks.sum(loss_and_gradient(weight, x, label)) / n
        weight.grad = both[1:].view_as(weight) + penalty * free * weight
        return both[0] + penalty / 2 * (free * weight).square().sum()

    step: Callable[[Callable[[], Tensor]], object] = optimizer.step
    step(closure)
    return weight.detach()
