"""Weighted nearest neighbours (Wu et al. 2018, arXiv:1805.01978,
with the numbers of DINO, arXiv:2104.14294).

The k nearest training samples by cosine vote with exp(similarity / 0.07) for their class. Each rank
keeps its share of the training samples; the queries of all ranks go round, and each rank's k
nearest are merged.
"""

import torch
from torch import Tensor

from vtx_scale.distributed.ranks import Ranks
from vtx_scale.evaluators.features import Features, largest, on_features, padded, table, top1, unit

HIGHER = ("top1@*",)


QUERIES, BANK = 1024, 8192  # of all ranks, of one: what is compared at once
LOW = (1 << 32) - 1


@on_features
def knn(
    train: Features,
    val: Features,
    classes: list[str] | None,
    ranks: Ranks,
    ks: tuple[int, ...] = (10, 20, 100, 200),
    temperature: float = 0.07,
) -> dict[str, float]:
    """top1@k for each k that the training samples suffice for (all of them where none does),
    and the samples.

    Equal for every world: of equally near samples the earlier in the tars is taken, of equal votes
    the lower class.
    """
    ids, labels = table(train, ranks)
    ks = tuple(k for k in ks if k <= len(ids)) or (len(ids),)
    share = -(-QUERIES // ranks.world)
    predicted: dict[int, list[Tensor]] = {k: [] for k in ks}
    bank = unit(train.x)
    for a in range(0, largest(len(val.x), ranks), share):
        mine = val.x[a : a + share]
        # (W share, k)
        near = nearest(unit(ranks.gather_plain(padded(mine, share))), bank, train.id, max(ks))
        parts = torch.unflatten(ranks.gather_plain(near), 0, (ranks.world, ranks.world, share))
        parts = parts[:, ranks.rank, : len(mine)]
        # (m, k), nearest first
        merged = parts.transpose(0, 1).flatten(1).topk(max(ks), dim=1).values
        similar, number = unpack(merged)
        label = labels[torch.searchsorted(ids, number)]
        weight = (similar.double() / temperature).exp()
        for k in ks:
            votes = weight.new_zeros(len(mine), int(labels.max()) + 1)
            predicted[k].append(votes.scatter_add_(1, label[:, :k], weight[:, :k]).argmax(1))
    found = {
        k: top1(torch.cat(predicted[k]) if predicted[k] else val.label, val, ranks) for k in ks
    }
    return {
        **{f"top1@{k}": v["top1"] for k, v in found.items()},
        "samples": found[ks[0]]["samples"],
    }


def nearest(query: Tensor, bank: Tensor, ids: Tensor, k: int) -> Tensor:
    """(m, k) packed neighbours of each query, nearest first. query (m, C), bank (n, C):
    float64 of unit length.
    """
    best = ids.new_full((len(query), k), torch.iinfo(torch.int64).min)
    for b in range(0, len(bank), BANK):
        packed = pack((query @ bank[b : b + BANK].T).float(), ids[b : b + BANK])
        best = torch.cat([best, packed], dim=1).topk(k, dim=1).values
    return best


def pack(similar: Tensor, ids: Tensor) -> Tensor:
    """One int64 for a neighbour, larger for a nearer one and of equally near ones for the lower
    id (below 2^32).

    The bits of a float rise with it as an integer does, but for the negative ones, which
    are turned round.
    """
    bits = turned((similar + 0.0).view(torch.int32).long())  # + 0.0: no negative zero
    return bits * (1 << 32) + (LOW - ids)


def unpack(packed: Tensor) -> tuple[Tensor, Tensor]:
    """(similarities float32, ids)."""
    return turned(packed >> 32).int().view(torch.float32), LOW - (packed & LOW)


def turned(bits: Tensor) -> Tensor:
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
