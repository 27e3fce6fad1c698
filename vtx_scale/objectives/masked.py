"""Masked patches (Dosovitskiy et al. 2021, appendix B.1.2):
what colour has a patch that was hidden?

B pictures, P patches, C width. Of each picture the `corrupted` share of the patches is chosen,
exactly; of these most become a learned embedding, some another patch's of the same picture, the
rest stays; the network says, at the chosen ones, which of 512 colours (3 bits a channel) the
patch's mean is. The loss is the mean over chosen patches.
Departs from the paper, which says nothing of it, in choosing a fixed number of patches a picture.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from vtx_scale.backbones import vit
from vtx_scale.blocks.rules import Rule, normal, under, zeros
from vtx_scale.blocks.slots import SlotContext
from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.objectives.base import Context, Objective
from vtx_scale.objectives.image_reader import ImageReader
from vtx_scale.objectives.pixels import normalised
from vtx_scale.objectives.probes import image_probes
from vtx_scale.specs.run import Data
from vtx_scale.specs.supervised import MaskedConfig

COLOURS = 512


def mean_colours(pixels: Tensor, patch: int) -> Tensor:
    """(B, S, S, 3) uint8 -> (B, P) int64 in 0..511: red, green, blue of a patch's mean,
    3 bits each, red highest.
    """
    B, S, _, _ = pixels.shape
    g = S // patch
    mean = pixels.to(torch.int64).view(B, g, patch, g, patch, 3).sum((2, 4)) // (patch * patch * 32)
    return (mean[..., 0] * 64 + mean[..., 1] * 8 + mean[..., 2]).view(B, g * g)


class Masked(Objective):
    def __init__(self, spec: MaskedConfig, context: Context) -> None:
        super().__init__(spec, context)
        self.spec: MaskedConfig = spec
        self.net = vit.ViT(spec.net)
        self.mask = nn.Parameter(torch.empty(1, 1, spec.net.width))
        self.colours = nn.Linear(spec.net.width, COLOURS)
        self.chosen = round(self.net.grid**2 * spec.corrupted)
        self.probes = {**image_probes(self, self.net, spec.pixels), "loss": self._loss}
        self.parameter_rules = (
            Rule(r"mask", normal(0.02), decay=False),
            Rule(r"colours\..*", zeros, hidden=False),
            *under("net.", self.net.parameter_rules),
        )

    @staticmethod
    def reader(spec: MaskedConfig, data: Data, train: bool) -> ImageReader:
        return ImageReader(spec.net.resolution, data, train, masks=not train)

    def units(self) -> Iterable[nn.Module]:
        return self.net.units()

    def count(self, batch: Batch) -> Tensor:
        """Chosen patches of valid slots."""
        return batch.valid.sum() * self.chosen

    def patches(
        self, pixels: Tensor, slots: SlotContext, train: bool = True
    ) -> tuple[Tensor, Tensor]:
        """(B, S, S, 3) -> the cross-entropy (B, P) in nats, 0 at patches that were not chosen;
        which were right there.
        """
        spec, P = self.spec, self.net.grid**2
        order = slots.uniform("chosen", P).argsort(dim=1, stable=True)
        rank = order.argsort(dim=1)
        chosen = rank < self.chosen
        how, where = (
            slots.uniform("how", P),
            (slots.uniform("where", P) * P).long().clamp(max=P - 1),
        )

        def corrupt(x: Tensor) -> Tensor:
            other = x.gather(1, where[..., None].expand_as(x))
            hidden, swapped = how < spec.hidden, how >= 1 - spec.swapped
            x = torch.where((chosen & hidden)[..., None], self.mask.to(x.dtype), x)
            return torch.where((chosen & swapped)[..., None], other, x)

        x = normalised(pixels, spec.pixels, self.mask.dtype)
        y = self.net.norm(self.net.tokens(x, slots if train else None, corrupt)[-1])[
            :, self.net.extra :
        ]
        logits = self.colours(y)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        wanted = mean_colours(pixels, self.net.cell)
        loss = F.cross_entropy(logits.transpose(1, 2), wanted, reduction="none")
        return torch.where(chosen, loss, torch.zeros_like(loss)), (
            logits.argmax(2) == wanted
        ) & chosen

    def forward(self, batch: Batch, step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        loss_BP, right_BP = self.patches(batch["image"], self.context.slots(batch, step))
        loss_B = torch.where(batch.valid, loss_BP.sum(1), torch.zeros_like(loss_BP[:, 0]))
        right = (right_BP.sum(1) * batch.valid).sum() / (batch.valid.sum() * self.chosen).clamp(
            min=1
        )
        return loss_B.sum(), {"accuracy": right}

    def _loss(self, pixels: NDArray[Any] | Tensor, ids: Tensor) -> Tensor:
        """uint8 (N, S, S, 3) and the samples' numbers -> (N,) mean nats of the chosen patches,
        the same for every world.
        """

        def nats(x: Tensor, ids: Tensor) -> Tensor:
            slots = SlotContext(
                torch.ones_like(ids, dtype=torch.bool),
                ids,
                torch.zeros((), dtype=torch.int64, device=ids.device),
                self.context.ranks,
                "evaluation",
            )
            return self.patches(x, slots, train=False)[0].sum(1) / self.chosen

        return self.context.run_probe(nats, torch.as_tensor(pixels), ids)
