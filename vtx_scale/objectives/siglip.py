"""SigLIP (Zhai et al. 2023, arXiv:2303.15343): each pair of an image and a text is a question
of yes or no.

n slots of this rank, E embedding. A rank holds the rows of its own images and sees the texts of
all, gathered or going round, with gradient; a masked slot is nobody's negative and weighs nothing.
The loss couples the whole batch, so the towers run in micro-batches under recomputation: memory is
one micro-batch's, the loss the batch's.
Departs from the authors' code: texts are gathered at once where theirs travel around a ring, as
with `system.contrastive=ring`. Their vocabulary is a SentencePiece one, which is not built in:
`data.tokenizer` takes a tokenizer.json, whose end token fills a text up as their id 1 does; a probe
takes token ids as they are.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vtx_scale.backbones import vit
from vtx_scale.backbones.text import SiglipText
from vtx_scale.blocks.autocast import full_tensor, with_master_value
from vtx_scale.blocks.rules import Rule, constant, normal, under
from vtx_scale.blocks.slots import SlotContext
from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.data_pipeline.text import tokenizer
from vtx_scale.objectives.base import Context, Objective
from vtx_scale.objectives.pairs import checkpointed_chunks, contrastive_loss
from vtx_scale.objectives.pixels import normalised
from vtx_scale.objectives.probes import captions, pictures
from vtx_scale.objectives.siglip_reader import SiglipReader, canonical, encode_all
from vtx_scale.specs.run import Data
from vtx_scale.specs.siglip import SiglipConfig


class Siglip(Objective):
    def __init__(self, spec: SiglipConfig, context: Context) -> None:
        super().__init__(spec, context)
        self.spec: SiglipConfig = spec
        self.image = vit.ViT(spec.image)
        self.text = SiglipText(spec.text)
        self.logit_scale = nn.Parameter(torch.empty(1))
        self.logit_bias = nn.Parameter(torch.empty(1))
        # scale and bias before mixed precision, of this step
        self.master: dict[str, Tensor | None] = {}
        self.probes = {
            "encode_image": self._probe_image,
            "encode_text": self._probe_text,
            "words": self._probe_words,
            "cut": self._probe_cut,
        }
        self.parameter_rules = (
            Rule(r"logit_scale", constant(math.log(spec.scale))),
            Rule(r"logit_bias", constant(spec.bias)),
            # the published initial values: a ViT's in both towers, positions by the width
            Rule(r"image\.positions", normal(lambda shape: shape[-1] ** -0.5), decay=False),
            *under("image.", self.image.parameter_rules),
            *under("text.", self.text.parameter_rules),
        )

    @staticmethod
    def reader(spec: SiglipConfig, data: Data, train: bool) -> SiglipReader:
        return SiglipReader(
            spec.image.resolution,
            spec.text.context,
            data.flip,
            data.tokenizer,
            train,
            data.bicubic,
            data.decode,
        )

    def units(self) -> Iterable[nn.Module]:
        return [*self.image.units(), *self.text.blocks]

    @staticmethod
    def macs(spec: SiglipConfig, count: Callable[..., int]) -> int:
        """Of both towers."""
        return count(spec.image) + count(spec.text)

    def encode_image(self, pixels: Tensor, slots: SlotContext | None = None) -> Tensor:
        """uint8 (n, S, S, 3) -> (n, E) of unit length, at least float32."""
        return unit(self.image(normalised(pixels, "half", self.text.positions.dtype), slots))

    def encode_text(self, tokens: Tensor) -> Tensor:
        """(n, T) -> (n, E) of unit length, at least float32."""
        return unit(self.text(tokens.long()))

    def prepare(self, batch: Batch, step: int) -> Batch:
        self.master = {"scale": full_tensor(self.logit_scale), "bias": full_tensor(self.logit_bias)}
        return batch

    def forward(self, batch: Batch, step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the loss over this rank's valid slots, and what to log."""
        micro = self.context.micro_batch
        image_nE = checkpointed_chunks(
            self.encode_image, batch["image"], micro, self.context.slots(batch, step)
        )
        text_nE = checkpointed_chunks(
            lambda tokens, _: self.encode_text(tokens), batch["tokens"], micro
        )
        scale = with_master_value(
            self.logit_scale, self.master.pop("scale", None), image_nE.dtype
        ).exp()
        bias = with_master_value(self.logit_bias, self.master.pop("bias", None), image_nE.dtype)
        loss_n = contrastive_loss(image_nE, text_nE, scale, bias, batch.valid, self.context)
        # a copy, because the bias itself lies in memory that a strategy may take back
        return loss_n.sum(), {"logit_scale": scale.detach(), "logit_bias": bias.detach().clone()}

    def _probe_image(self, pixels: NDArray[Any] | Tensor) -> Tensor:
        """uint8 (N, S, S, 3) at the model's size -> (N, E) float32 of unit length, on the CPU."""
        return self.context.run_probe(self.encode_image, pictures(pixels))

    def _probe_text(self, texts: list[str] | Tensor) -> Tensor:
        """Captions or token ids (N, T) -> (N, E) float32 of unit length, on the CPU."""
        if not isinstance(texts, Tensor):
            texts = torch.from_numpy(
                encode_all(
                    tokenizer(self.context.tokenizer), captions(texts), self.spec.text.context
                )
            )
        return self.context.run_probe(self.encode_text, texts)

    def _probe_words(self, tokens: Tensor) -> list[str]:
        """Token ids (N, T) -> the captions that they stand for."""
        read = tokenizer(self.context.tokenizer)
        return [read.decode(row) for row in tokens.tolist()]

    def _probe_cut(self, texts: list[str]) -> tuple[int, int]:
        """How many captions are longer than what is read of one, and that number of tokens."""
        words = tokenizer(self.context.tokenizer)
        return words.cut(map(canonical, captions(texts)), self.spec.text.context - 1)


def unit(x: Tensor) -> Tensor:
    """Rows of unit length, in at least float32: x / (|x| + 1e-8)."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    rows: Tensor = x / (x.norm(dim=-1, keepdim=True) + 1e-8)
    return rows
