"""Features of labelled samples: made once, shared by the evaluators that ask for nothing else."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.distributed.ranks import Ranks

DRAWS = 255  # the purpose of an evaluator's draws: far from those of vtx_scale.data_pipeline.order

Evaluator = TypeVar("Evaluator", bound=Callable[..., Any])


@dataclass(frozen=True)
class Features:
    """One rank's share of the valid, labelled samples.

    x (n, C) float32, label (n,) int64. id (n,) int64: numbers in tar order, which tell samples
    apart in any world.
    """

    x: Tensor
    label: Tensor
    id: Tensor


def on_features(function: Evaluator) -> Evaluator:
    """Marks an evaluator (train: Features, val: Features, classes, ranks) -> numbers."""
    function.on_features = True  # type: ignore[attr-defined]
    return function


def extract(
    probe: Callable[..., Tensor],
    batches: Iterable[Batch],
    ranks: Ranks,
    key: str = "data.val_shards",
) -> Features:
    """probe: uint8 (N, S, S, 3) -> (N, C).

    It sees every slot, masked ones too, so that all ranks call it equally often.

    Raises UserError, which names `key`, where no sample has a label, and where features
    are not finite.
    """
    x, label, number, labelled = [], [], [], 0
    for batch in batches:
        missing = [name for name in ("image", "label") if name not in batch]
        if missing:
            raise UserError(
                f"This objective's reader gives no {missing[0]}: "
                "its features cannot be scored by labels."
            )
        answer = probe(batch["image"]).float()
        keep = batch.valid & (batch["label"] >= 0)
        x.append(answer[keep])
        label.append(batch["label"][keep].long())
        number.append(batch.ids[keep])
        # at each batch: a rank that is ahead must not wait for hours at the end
        count, strange = ranks.sum(torch.stack([keep.sum(), (~x[-1].isfinite()).sum()])).tolist()
        if strange:
            raise UserError(
                "The network's features are no finite numbers, so they cannot be scored: "
                "look at the run's losses."
            )
        labelled += count
    if not labelled:
        raise UserError(
            f"No sample of {key} has a label: give shards with a cls member, as {key}=FOLDER."
        )
    return Features(torch.cat(x), torch.cat(label), torch.cat(number))


def largest(n: int, ranks: Ranks) -> int:
    """The largest n of all ranks."""
    return int(ranks.gather_plain(torch.tensor([n])).max())


def padded(rows: Tensor, n: int) -> Tensor:
    """(m, ...) -> (n, ...), zeros below."""
    return torch.cat([rows, rows.new_zeros((n - len(rows), *rows.shape[1:]))])


def table(features: Features, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """(ids, labels) of all ranks' samples, each (N,), by rising id."""
    most = largest(len(features.id), ranks)
    there = ranks.gather_plain(padded(torch.ones_like(features.id, dtype=torch.bool), most))
    number = ranks.gather_plain(padded(features.id, most))[there]
    label = ranks.gather_plain(padded(features.label, most))[there]
    turn = number.argsort()
    return number[turn], label[turn]


def top1(predicted: Tensor, features: Features, ranks: Ranks) -> dict[str, float]:
    """The share of all ranks' samples that were said right, and how many there are.

    said: (n,) classes.
    """
    right, count = ranks.sum(
        torch.stack([(predicted == features.label).sum(), torch.tensor(len(predicted))])
    ).tolist()
    return {"top1": right / count, "samples": count}


def unit(x: Tensor) -> Tensor:
    """Rows of unit length in float64: similarities that are rounded to float32 then hang on no
    order of summation.
    """
    return F.normalize(x.double(), dim=-1)
