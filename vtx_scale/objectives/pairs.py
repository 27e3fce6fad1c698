"""What CLIP and SigLIP share: what a sample is, towers in micro-batches, similarities,
and the sigmoid loss.

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
