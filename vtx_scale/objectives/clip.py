"""CLIP (Radford et al. 2021, arXiv:2103.00020): images and their captions meet in one space.

n slots of this rank, E embedding. Every rank computes the rows of its own slots in both directions
against the slots of all, whose features are gathered or go round; a masked slot is nobody's
negative and weighs nothing. The loss couples the whole batch, so the towers run in micro-batches
under recomputation: memory is one micro-batch's, the loss the batch's. A ResNet's images go through
in one pass, because its statistics are over the whole batch.
Departs from the paper: the logit scale is clamped after the step to [0, ln 100], as open_clip does.
The sigmoid loss is SigLIP's (Zhai et al. 2023, arXiv:2303.15343), after the authors' code where it
differs from Eq. 1.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from vtx_scale.backbones import build_network
from vtx_scale.backbones.text import Text
from vtx_scale.blocks.autocast import full_tensor, with_master_value
from vtx_scale.blocks.rules import Rule, constant, normal, under
from vtx_scale.blocks.slots import SlotContext
from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.data_pipeline.text import tokenizer
from vtx_scale.objectives.base import Context, Objective
from vtx_scale.objectives.clip_reader import ClipReader
from vtx_scale.objectives.pairs import checkpointed_chunks, contrastive_loss
from vtx_scale.objectives.pixels import normalised
from vtx_scale.objectives.probes import captions, pictures, probe
from vtx_scale.specs.clip import ClipConfig
from vtx_scale.specs.run import Data


class Clip(Objective):
    def __init__(self, spec: ClipConfig, context: Context) -> None:
        super().__init__(spec, context)
        self.spec: ClipConfig = spec
        self.image = build_network(spec.image)
        self.image_proj = (
            None if spec.image.projects else nn.Parameter(torch.empty(spec.image.width, spec.embed))
        )
        self.text = Text(spec.text)
        self.text_proj = nn.Parameter(torch.empty(spec.text.width, spec.embed))
        self.logit_scale = nn.Parameter(torch.empty(1))
        self.logit_bias = nn.Parameter(torch.empty(1)) if spec.loss == "sigmoid" else None
        # scale and bias before mixed precision, of this step
        self.master: dict[str, Tensor | None] = {}
        self.probes = {
            "encode_image": self._probe_image,
            "encode_text": self._probe_text,
            "words": self._probe_words,
            "cut": self._probe_cut,
        }
        # a linear probe sees what comes before the projection (section 3.2 of the paper)
        if self.image_proj is not None:
            self.probes["features_linear"] = probe(self, "clip", self.image.features)
        limits = (0.0, math.log(spec.scale_limit)) if spec.loss == "softmax" else None
        self.parameter_rules = (
            Rule(r"logit_scale", constant(math.log(spec.scale)), limits=limits),
            Rule(r"logit_bias", constant(-10.0)),
            Rule(r"(image|text)_proj", normal(lambda shape: shape[0] ** -0.5)),
            *under("image.", self.image.parameter_rules),
            *under("text.", self.text.parameter_rules),
        )

    @staticmethod
    def reader(spec: ClipConfig, data: Data, train: bool) -> ClipReader:
        return ClipReader(
            spec.image.resolution,
            spec.text.context,
            data.crop,
            data.ratio,
            data.flip,
            data.tokenizer,
            train,
            data.bicubic,
            data.decode,
        )

    def units(self) -> Iterable[nn.Module]:
        return [*self.image.units(), *self.text.blocks]

    def encode_image(self, pixels: Tensor, slots: SlotContext | None = None) -> Tensor:
        """uint8 (n, S, S, 3) -> (n, E) of unit length, at least float32;
        with rows by their batch statistics.
        """
        x = self.image.features(normalised(pixels, "clip", self.text_proj.dtype), slots)
        return unit(x if self.image_proj is None else x @ self.image_proj)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """(n, T) -> (n, E) of unit length, at least float32."""
        return unit(self.text(tokens.long()) @ self.text_proj)

    def prepare(self, batch: Batch, step: int) -> Batch:
        self.master = {
            "scale": full_tensor(self.logit_scale),
            "bias": None if self.logit_bias is None else full_tensor(self.logit_bias),
        }
        return batch

    def forward(self, batch: Batch, step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the loss over this rank's valid slots, and what to log."""
        micro, slots = self.context.micro_batch, self.context.slots(batch, step)
        whole_batch = self.spec.image.couples  # statistics of all of it
        image_nE = checkpointed_chunks(
            self.encode_image, batch["image"], None if whole_batch else micro, slots
        )
        text_nE = checkpointed_chunks(
            lambda tokens, _: self.encode_text(tokens), batch["tokens"], micro
        )
        scale = with_master_value(
            self.logit_scale, self.master.pop("scale", None), image_nE.dtype
        ).exp()
        bias = None
        if self.logit_bias is not None:
            bias = with_master_value(self.logit_bias, self.master.pop("bias", None), image_nE.dtype)
        loss_n = contrastive_loss(image_nE, text_nE, scale, bias, batch.valid, self.context)
        return loss_n.sum(), {"logit_scale": scale.detach()}

    @staticmethod
    def macs(spec: ClipConfig, count: Callable[..., int]) -> int:
        """Of both towers and projections."""
        image = 0 if spec.image.projects else spec.image.width * spec.embed
        return count(spec.image) + count(spec.text) + image + spec.text.width * spec.embed

    def _probe_image(self, pixels: NDArray[Any] | Tensor) -> Tensor:
        """uint8 (N, S, S, 3) at the model's size -> (N, E) float32 of unit length, on the CPU."""
        return self.context.run_probe(self.encode_image, pictures(pixels))

    def _probe_text(self, texts: list[str] | Tensor) -> Tensor:
        """Captions or token ids (N, T) -> (N, E) float32 of unit length, on the CPU."""
        if not isinstance(texts, Tensor):
            texts = torch.from_numpy(
                tokenizer(self.context.tokenizer).encode_all(
                    captions(texts), self.spec.text.context
                )
            )
        return self.context.run_probe(self.encode_text, texts)

    def _probe_words(self, tokens: Tensor) -> list[str]:
        """Token ids (N, T) -> the captions that they stand for."""
        read = tokenizer(self.context.tokenizer)
        return [read.decode(row) for row in tokens.tolist()]

    def _probe_cut(self, texts: list[str]) -> tuple[int, int]:
        """How many captions are longer than what is read of one, and that number of tokens."""
        return tokenizer(self.context.tokenizer).cut(captions(texts), self.spec.text.context - 2)


def unit(x: Tensor) -> Tensor:
    """Rows of unit length, in at least float32: a dot product of many terms is too coarse
    in half precision.
    """
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)
