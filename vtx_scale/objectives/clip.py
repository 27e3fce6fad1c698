"""CLIP (Radford et al. 2021, arXiv:2103.00020): images and their captions meet in one space.

n slots of this rank, A = W n of all ranks, E embedding. Every rank computes the rows of its own slots in both
directions against all A columns; a masked slot is nobody's negative and weighs nothing. The loss couples the whole
batch, so the towers run in micro-batches under recomputation: memory is one micro-batch's, the loss the batch's.
A ResNet's images go through in one pass, because its statistics are over the whole batch.
Departs from the paper: the logit scale is clamped after the step to [0, ln 100], as open_clip does.
The sigmoid loss is SigLIP's (Zhai et al. 2023, arXiv:2303.15343), after the authors' code where it differs from Eq. 1.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtx_scale.backbones import clip_resnet
from vtx_scale.backbones.text import Text
from vtx_scale.backbones.vit import ViT
from vtx_scale.blocks.exact import unrounded, whole
from vtx_scale.blocks.rows import Rows
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.text import tokenizer
from vtx_scale.distributed.ranks import Ranks
from vtx_scale.objectives.base import Objective
from vtx_scale.objectives.clip_reader import ClipReader
from vtx_scale.objectives.pairs import in_parts, own, refuse_words, sigmoid_loss, similar
from vtx_scale.objectives.pixels import normalised
from vtx_scale.objectives.probes import probe
from vtx_scale.specs.clip import Clip as Spec
from vtx_scale.specs.resnet import ClipResNet


class Clip(Objective):
    separable = False
    heeds = ("crop", "ratio", "flip", "bicubic", "tokenizer")

    def __init__(self, spec: Spec, ranks: Ranks) -> None:
        super().__init__(spec, ranks)
        self.spec: Spec = spec
        if isinstance(spec.image, ClipResNet) and spec.image.embed != spec.embed:
            raise UserError(f"objective.image.embed={spec.image.embed} and objective.embed={spec.embed} are one space: "
                            "set both to the same number.")
        self.image: ViT | clip_resnet.ClipResNet
        self.image_proj: nn.Parameter | None  # a ResNet's attention pool projects itself
        if isinstance(spec.image, ClipResNet):
            self.image, self.image_proj = clip_resnet.ClipResNet(spec.image), None
        else:
            self.image, self.image_proj = ViT(spec.image), nn.Parameter(torch.empty(spec.image.width, spec.embed))
        self.text = Text(spec.text)
        self.text_proj = nn.Parameter(torch.empty(spec.text.width, spec.embed))
        self.logit_scale = nn.Parameter(torch.empty(1))
        self.logit_bias = nn.Parameter(torch.empty(1)) if spec.loss == "sigmoid" else None
        self.stored: dict[str, Tensor | None] = {}  # scale and bias before mixed precision, of this step
        self.tokenizer = "bytes"
        self.probes = {"encode_image": self._probe_image, "encode_text": self._probe_text}
        if self.image_proj is not None:  # a linear probe sees what comes before the projection (section 3.2 of the paper)
            self.probes["features_linear"] = probe(self, "clip", self.image)

    @staticmethod
    def reader(spec: Spec, data: Any, train: bool) -> ClipReader:
        refuse_words(data.tokenizer, spec.text.vocab)
        return ClipReader(spec.image.resolution, spec.text.context, data.crop, data.ratio, data.flip, data.tokenizer, train,
                          data.bicubic)

    def units(self) -> Iterable[nn.Module]:
        image = self.image.units() if isinstance(self.image, clip_resnet.ClipResNet) else self.image.blocks
        return [*image, *self.text.blocks]

    def undecayed(self, name: str, parameter: Tensor) -> bool:
        """Gains, biases, the scale, and the class token (a vector in the published models)."""
        return parameter.ndim < 2 or name.endswith("cls_token")

    @torch.no_grad()
    def after_step(self) -> None:
        if self.spec.loss == "softmax":
            local = getattr(self.logit_scale, "_local_tensor", self.logit_scale)
            local.clamp_(0, math.log(self.spec.scale_limit))

    def initial(self, name: str, shape: torch.Size) -> tuple[str, float]:
        """The published initial values: torch's defaults in the image blocks, OpenAI's in the text tower."""
        image = self.spec.image
        if isinstance(image, ClipResNet) and name.startswith("image."):
            return clip_resnet.initial(name.removeprefix("image."), shape, image)
        if name == "logit_scale":
            return "constant", math.log(self.spec.scale)
        if name == "logit_bias":
            return "constant", -10.0
        if "norm" in name:
            return ("ones" if name.endswith("weight") else "zeros"), 0.0
        if name.endswith("_proj"):
            return "normal", shape[0] ** -0.5
        tower, rest = name.split(".", 1)
        width = (image if tower == "image" else self.spec.text).width
        if tower == "image":
            assert not isinstance(image, ClipResNet)
            if rest in ("cls_token", "positions"):
                return "normal", width**-0.5
            if "attn" in rest and rest.endswith("bias"):
                return "zeros", 0.0
            if rest.endswith("qkv.weight"):
                return "uniform", math.sqrt(6 / (shape[0] + shape[1]))
            fan_in = math.prod(shape[1:]) if len(shape) > 1 else (width if "fc1" in rest else image.mlp)
            return "uniform", 1 / math.sqrt(fan_in)
        depth = self.spec.text.depth
        if rest == "embedding.weight":
            return "normal", 0.02
        if rest == "positions":
            return "normal", 0.01
        if rest.endswith("bias"):
            if "attn" in rest:
                return "zeros", 0.0
            return "uniform", 1 / math.sqrt(width if "fc1" in rest else 4 * width)
        if "qkv" in rest:
            return "normal", width**-0.5
        if "fc1" in rest:
            return "normal", (2 * width) ** -0.5
        return "normal", width**-0.5 * (2 * depth) ** -0.5

    def encode_image(self, pixels: Tensor, rows: Rows | None = None) -> Tensor:
        """uint8 (n, S, S, 3) -> (n, E) of unit length, at least float32; with rows by their batch statistics."""
        x = normalised(pixels, "clip", self.text_proj.dtype)
        if isinstance(self.image, clip_resnet.ClipResNet):
            return unit(self.image(x, rows))
        return unit(self.image(x) @ self.image_proj)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """(n, T) -> (n, E) of unit length, at least float32."""
        return unit(self.text(tokens.long()) @ self.text_proj)

    def encode(self, what: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        """All rows, in micro-batches whose activations are computed again in the backward pass."""
        return in_parts(what, rows, self.micro_batch)

    def prepare(self, batch: Any, step: int) -> Any:
        self.stored = {"scale": whole(self.logit_scale), "bias": None if self.logit_bias is None else whole(self.logit_bias)}
        return batch

    def forward(self, batch: Any, step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the loss over this rank's valid slots, and what to log."""
        if isinstance(self.image, clip_resnet.ClipResNet):
            image_nE = self.encode_image(batch["image"], self.rows(batch, step))
        else:
            image_nE = self.encode(self.encode_image, batch["image"])
        text_nE = self.encode(self.encode_text, batch["tokens"])
        scale = unrounded(self.logit_scale, self.stored.pop("scale", None), image_nE.dtype).exp()
        valid_A = self.ranks.gather_plain(batch.valid)
        text_AE = self.ranks.gather(text_nE)
        seen = {"logit_scale": scale.detach()}
        if self.logit_bias is not None:
            bias = unrounded(self.logit_bias, self.stored.pop("bias", None), image_nE.dtype)
            return sigmoid_loss(image_nE, text_AE, scale, bias, batch.valid, valid_A, self.ranks.rank).sum(), seen
        loss_n = (self._rows(image_nE, text_AE, scale, batch.valid, valid_A)
                  + self._rows(text_nE, self.ranks.gather(image_nE), scale, batch.valid, valid_A)) / 2
        return loss_n.sum(), seen

    def _rows(self, x_nE: Tensor, y_AE: Tensor, scale: Tensor, valid_n: Tensor, valid_A: Tensor) -> Tensor:
        """Cross-entropy of each valid row against its own column; 0 on rows that are not valid."""
        logits_nA = similar(scale * x_nE, y_AE).masked_fill(~valid_A, float("-inf"))
        logits_nA = torch.where(valid_n[:, None], logits_nA, torch.zeros_like(logits_nA))
        loss_n = F.cross_entropy(logits_nA, own(self.ranks.rank, len(x_nE), x_nE.device), reduction="none")
        return torch.where(valid_n, loss_n, torch.zeros_like(loss_n))

    def _probe_image(self, pixels: np.ndarray | Tensor) -> Tensor:
        """uint8 (N, S, S, 3) at the model's size -> (N, E) float32 of unit length, on the CPU."""
        return self.ask(self.encode_image, torch.as_tensor(pixels))

    def _probe_text(self, texts: list[str] | Tensor) -> Tensor:
        """Captions or token ids (N, T) -> (N, E) float32 of unit length, on the CPU."""
        if not isinstance(texts, Tensor):
            texts = torch.from_numpy(tokenizer(self.tokenizer).encode_all(texts, self.spec.text.context))
        return self.ask(self.encode_text, texts)


def unit(x: Tensor) -> Tensor:
    """Rows of unit length, in at least float32: a dot product of many terms is too coarse in half precision."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)
