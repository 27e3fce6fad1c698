"""What CLIP and SigLIP share: what a sample is, towers in micro-batches, similarities,
and the losses of both, with the other ranks' features gathered or going round.

n slots of this rank, A of all, E embedding.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from vtx_scale.blocks.autocast import no_autocast
from vtx_scale.blocks.slots import SlotContext
from vtx_scale.data_pipeline.read import Row
from vtx_scale.objectives.base import Context


def blank_pair(size: int, context: int) -> Row:
    """What a reader of pairs gives for a masked slot:
    image (size, size, 3) uint8, tokens (context,) int32, label () int64.
    """
    return {
        "image": np.zeros((size, size, 3), np.uint8),
        "tokens": np.zeros(context, np.int32),
        "label": np.array(-1, np.int64),
    }


def checkpointed_chunks(
    function: Callable[[Tensor, SlotContext | None], Tensor],
    x: Tensor,
    micro: int | None,
    slots: SlotContext | None = None,
) -> Tensor:
    """function(x, slots), `micro` rows at a time, whose activations are computed again in
    the backward pass.
    """
    if micro is None or micro >= len(x):
        return function(x, slots)

    def part(a: int) -> Tensor:
        some = None if slots is None else slots.part(a, a + micro)
        out: Tensor = checkpoint(function, x[a : a + micro], some, use_reentrant=False)
        return out

    # a forward cut short would leave a sharded unit half done
    with set_checkpoint_early_stop(False):
        return torch.cat([part(a) for a in range(0, len(x), micro)])


def contrastive_loss(
    image_nE: Tensor,
    text_nE: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    valid_n: Tensor,
    context: Context,
) -> Tensor:
    """(n,) the loss of each slot against those of all ranks; 0 where it is not valid. SigLIP's
    where there is a bias (1,), else CLIP's, the mean of both directions.

    A rank holds the rows of its own slots; a slot that is not valid is nobody's negative. The
    context says whether the other ranks' features are gathered or go round (`Ranks.ring_softmax`,
    `Ranks.ring_sigmoid`): the same numbers up to the order in which they are added.
    """
    ranks = context.ranks
    if context.contrastive == "ring":
        with no_autocast(image_nE.device):
            if bias is not None:
                return ranks.ring_sigmoid(scale * image_nE, text_nE, bias, valid_n)
            there = ranks.ring_softmax(scale * image_nE, text_nE, valid_n)
            return (there + ranks.ring_softmax(scale * text_nE, image_nE, valid_n)) / 2
    valid_A, text_AE = ranks.gather_plain(valid_n), ranks.gather(text_nE)
    if bias is not None:
        return sigmoid_loss(image_nE, text_AE, scale, bias, valid_n, valid_A, ranks.rank)
    image_loss_n = softmax_loss(image_nE, text_AE, scale, valid_n, valid_A, ranks.rank)
    image_AE = ranks.gather(image_nE)
    return (image_loss_n + softmax_loss(text_nE, image_AE, scale, valid_n, valid_A, ranks.rank)) / 2


def softmax_loss(
    x_nE: Tensor, y_AE: Tensor, scale: Tensor, valid_n: Tensor, valid_A: Tensor, rank: int
) -> Tensor:
    """(n,) of each valid row against its own column; 0 on rows that are not valid."""
    logits_nA = similar(scale * x_nE, y_AE).masked_fill(~valid_A, float("-inf"))
    logits_nA = torch.where(valid_n[:, None], logits_nA, torch.zeros_like(logits_nA))
    loss_n = F.cross_entropy(logits_nA, own(rank, len(x_nE), x_nE.device), reduction="none")
    return torch.where(valid_n, loss_n, torch.zeros_like(loss_n))


def own(rank: int, n: int, device: torch.device) -> Tensor:
    """(n,): the columns of this rank's slots among all."""
    return rank * n + torch.arange(n, device=device)


def similar(x_nE: Tensor, y_AE: Tensor) -> Tensor:
    """(n, A), in the type of x: at a scale of 100 half precision would be off by half a unit."""
    with no_autocast(x_nE.device):
        return x_nE @ y_AE.T


def sigmoid_loss(
    x_nE: Tensor,
    y_AE: Tensor,
    scale: Tensor,
    bias: Tensor,
    valid_n: Tensor,
    valid_A: Tensor,
    rank: int,
) -> Tensor:
    """(n,): SigLIP's loss (Zhai et al. 2023, arXiv:2303.15343) of each slot against all;
    0 where it is not valid.

    A pair is yes on the diagonal, no elsewhere; a masked slot is nobody's negative. After the
    authors' code, where the bias is added; Eq. 1 of the paper subtracts it.
    """
    logits_nA = similar(scale * x_nE, y_AE) + bias
    sign_nA = -torch.ones_like(logits_nA)
    sign_nA[torch.arange(len(x_nE), device=x_nE.device), own(rank, len(x_nE), x_nE.device)] = 1
    loss_nA = -F.logsigmoid(sign_nA * logits_nA)
    return torch.where(valid_n[:, None] & valid_A, loss_nA, torch.zeros_like(loss_nA)).sum(1)
