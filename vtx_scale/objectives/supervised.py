"""Classification: ViT at JFT scale (Dosovitskiy et al. 2021;
Zhai et al. 2022), DeiT's recipe without a teacher, ResNets.

n slots, V views of each, B = n V rows, K classes. One label a sample and softmax, or several and a
sigmoid each. The loss of a slot is the mean over its views. Departs from the papers in that a mixed
slot's partner is its neighbour.
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtx_scale.backbones import build_network
from vtx_scale.blocks.rules import Rule, constant, under
from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.objectives.base import Context, Objective
from vtx_scale.objectives.image_reader import ImageReader
from vtx_scale.objectives.mixing import mix
from vtx_scale.objectives.pixels import normalised
from vtx_scale.objectives.probes import image_probes
from vtx_scale.specs.run import Data
from vtx_scale.specs.supervised import SupervisedConfig


def softmax_loss(logits_BK: Tensor, label_B: Tensor, smoothing: float) -> Tensor:
    """(B,) cross-entropy to a label of weight 1 - smoothing and all classes alike;
    0 on a row without a label.
    """
    return F.cross_entropy(
        logits_BK, label_B, ignore_index=-1, reduction="none", label_smoothing=smoothing
    )


def sigmoid_loss(logits_BK: Tensor, labels_BM: Tensor) -> Tensor:
    """(B,) binary cross-entropy summed over classes; labels -1 stand for none."""
    there = labels_BM >= 0
    own_B = torch.where(
        there, logits_BK.gather(1, labels_BM.clamp(min=0)), torch.zeros_like(logits_BK[:, :1])
    ).sum(1)
    return F.softplus(logits_BK).sum(1) - own_B


class Supervised(Objective):
    def __init__(self, spec: SupervisedConfig, context: Context) -> None:
        super().__init__(spec, context)
        self.spec: SupervisedConfig = spec
        self.net = build_network(spec.net)
        self.probes = image_probes(self, self.net, spec.pixels)
        bias = (
            (Rule(r"net\.head\.bias", constant(spec.head_bias), group="head"),)
            if spec.head_bias
            else ()
        )
        self.parameter_rules = (*bias, *under("net.", self.net.parameter_rules))

    @staticmethod
    def reader(spec: SupervisedConfig, data: Data, train: bool) -> ImageReader:
        return ImageReader(
            spec.net.resolution,
            data,
            train,
            classes=spec.net.classes,
            labels=spec.labels,
            masks=not train,
        )

    def units(self) -> Iterable[nn.Module]:
        return self.net.units()

    def prepare(self, batch: Batch, step: int) -> Batch:
        """Erasing and mixing, which pair neighbouring slots."""
        return mix(
            batch,
            self.context,
            self.spec.pixels,
            step,
            self._labels(),
            next(self.parameters()).dtype,
        )

    def _labels(self) -> str:
        return "labels" if self.spec.labels > 1 else "label"

    def loss(self, logits_BK: Tensor, labels: Tensor) -> Tensor:
        """(B,) for labels (B,), or (B, M) of several, of one part of a mix."""
        if self.spec.loss == "sigmoid":
            return sigmoid_loss(logits_BK, labels if labels.ndim == 2 else labels[:, None])
        return softmax_loss(logits_BK, labels, self.spec.smoothing)

    def forward(self, batch: Batch, step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        image_B = flat(batch["image"])
        V = len(image_B) // len(batch)
        x = normalised(image_B, self.spec.pixels, next(self.parameters()).dtype)
        logits_BK = self.net(x, self.context.slots(batch, step, V))
        logits_BK = logits_BK.to(torch.promote_types(logits_BK.dtype, torch.float32))
        label = batch[self._labels()]
        loss_n = shared(lambda labels: self.loss(logits_BK, labels), batch, self._labels(), V)
        right_n = (
            torch.unflatten(logits_BK.argmax(1), 0, (-1, V))[:, 0, None]
            == label.view(len(batch), -1)
        ).any(1)
        accuracy = (right_n & batch.valid).sum() / batch.valid.sum().clamp(min=1)
        return torch.where(batch.valid, loss_n, torch.zeros_like(loss_n)).sum(), {
            "accuracy": accuracy
        }


def flat(image: Tensor) -> Tensor:
    """(n, S, S, 3) or (n, V, S, S, 3) -> (B, S, S, 3)."""
    return image.flatten(0, 1) if image.ndim == 5 else image


def shared(loss: Callable[[Tensor], Tensor], batch: Batch, name: str, views: int) -> Tensor:
    """(n,) the loss of a slot, the mean over its views,
    shared between its own labels and its partner's where mixed.
    """
    own_B = loss(batch[name].repeat_interleave(views, 0))
    if "weight" in batch:
        weight_B = batch["weight"].repeat_interleave(views).to(own_B.dtype)
        own_B = weight_B * own_B + (1 - weight_B) * loss(
            batch[f"other {name}"].repeat_interleave(views, 0)
        )
    return torch.unflatten(own_B, 0, (-1, views)).mean(1)
