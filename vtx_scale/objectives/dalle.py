"""DALL-E's second stage (Ramesh et al. 2021, arXiv:2102.12092):
a caption and the codes of its picture, one after the other.

B samples, T text places, G x G codes. The codes are the likeliest of a trained discrete VAE,
which lies frozen in the checkpoint, so that a run goes on without the files that it came from;
shards that hold codes in place of pictures are read as they are (docs/data.md).
The loss is 1/8 of the text's mean cross-entropy and 7/8 of the codes'. Places behind a caption
count: each has its own learned input, and the end token for an answer. Departs: no gradient scale
of a block's own and no PowerSGD; mixed precision is the strategy's, embeddings and outputs in
float32 as in the paper.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from vtx_scale.backbones import dalle, dvae
from vtx_scale.blocks import random
from vtx_scale.blocks.rules import under
from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.data_pipeline.text import tokenizer
from vtx_scale.objectives.base import Context, Objective
from vtx_scale.objectives.dalle_reader import DalleReader, framed
from vtx_scale.objectives.dvae import mapped, unmapped
from vtx_scale.objectives.igpt import drawn
from vtx_scale.objectives.image_reader import ImageReader
from vtx_scale.specs.dalle import DalleConfig
from vtx_scale.specs.run import Data


class Dalle(Objective):
    def __init__(self, spec: DalleConfig, context: Context) -> None:
        super().__init__(spec, context)
        self.spec: DalleConfig = spec
        self.net = dalle.TextToCodes(spec.net)
        self.codec = dvae.Codec(spec.codec).requires_grad_(False)
        self.probes = {
            "codes": self.codes,
            "decode": self.decode,
            "loss": self._loss,
            "sample": self.sample,
            "cut": self._probe_cut,
        }
        codec = under("codec.", self.codec.parameter_rules)
        self.parameter_rules = (*under("net.", self.net.parameter_rules), *codec)

    @staticmethod
    def reader(spec: DalleConfig, data: Data, train: bool) -> DalleReader:
        return DalleReader(
            ImageReader(spec.codec.resolution, data, train),
            spec.net.context,
            spec.merges_dropped,
            data,
            train,
        )

    @staticmethod
    def codes_reader(spec: DalleConfig, data: Data, train: bool) -> DalleReader:
        codes = spec.codec.grid**2, spec.codec.vocab
        return replace(Dalle.reader(spec, data, train), codes=codes)

    def units(self) -> Iterable[nn.Module]:
        return [*self.net.units(), *self.codec.units()]

    def nats(self, tokens_BT: Tensor, length_B: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) each: the mean cross-entropy of a sample's text places, and of its codes."""
        tokens_BT = tokens_BT.long()
        text, code = self.net(tokens_BT, self.unused(length_B), codes)
        wide = torch.promote_types(text.dtype, torch.float32)

        def mean(logits: Tensor, wanted: Tensor) -> Tensor:
            logits = logits.to(wide).transpose(1, 2)
            return F.cross_entropy(logits, wanted, reduction="none").mean(1)

        return mean(text, tokens_BT), mean(code, codes)

    def unused(self, length_B: Tensor) -> Tensor:
        """(B, T) bool: places behind a caption."""
        return torch.arange(self.spec.net.context, device=length_B.device) >= length_B[:, None]

    def forward(self, batch: Batch, step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        if "codes" in batch:
            codes = batch["codes"].long()
        else:
            with torch.no_grad():
                codes = self.coded(batch["image"])
        text_B, code_B = self.nats(batch["tokens"], batch["length"], codes)
        count = batch.valid.sum().clamp(min=1)

        def counted(x_B: Tensor) -> Tensor:
            return torch.where(batch.valid, x_B, torch.zeros_like(x_B)).sum()

        share = self.spec.text_share
        log = {
            "text_nats": counted(text_B).detach() / count,
            "code_nats": counted(code_B).detach() / count,
        }
        return counted(share * text_B + (1 - share) * code_B), log

    def coded(self, pixels: Tensor) -> Tensor:
        """uint8 (B, S, S, 3) -> (B, G G) int64."""
        encoder = self.codec.encoder
        logits: Tensor = encoder(mapped(pixels, encoder.input.weight.dtype))
        return logits.argmax(1).flatten(1)

    def codes(self, pixels: NDArray[Any] | Tensor) -> Tensor:
        """uint8 (B, S, S, 3) -> (B, G, G), whole numbers in 0..K-1."""
        return self.context.run_probe(
            lambda x: torch.unflatten(self.coded(x), 1, (self.spec.net.grid,) * 2),
            torch.as_tensor(pixels),
        )

    def decode(self, codes: NDArray[Any] | Tensor) -> Tensor:
        """(B, G, G) codes -> (B, S, S, 3) in 0..255."""
        return self.context.run_probe(
            lambda c: unmapped(self.codec.decoder.of_codes(c.long())), torch.as_tensor(codes)
        )

    def _loss(
        self, pixels: NDArray[Any] | Tensor, ids: Tensor, tokens: Tensor, length: Tensor
    ) -> Tensor:
        """(B,) nats, weighted as in training. pixels: or codes (B, G G)."""

        def nats(x: Tensor, tokens: Tensor, length: Tensor) -> Tensor:
            codes = x.long() if x.ndim == 2 else self.coded(x)
            text_B, code_B = self.nats(tokens, length, codes)
            return self.spec.text_share * text_B + (1 - self.spec.text_share) * code_B

        return self.context.run_probe(nats, torch.as_tensor(pixels), tokens, length)

    def sample(
        self,
        texts: list[str] | tuple[Tensor, Tensor],
        seed: int = 0,
        temperature: float = 1.0,
        first: int = 0,
    ) -> Tensor:
        """Captions, or their tokens (B, T) and lengths (B,) -> a picture of each,
        (B, S, S, 3) in 0..255.

        A picture's random numbers belong to the seed and to its place among the captions, of which
        these are first, ...
        """
        if isinstance(texts, list):
            words = tokenizer(self.context.tokenizer)
            framed_texts = [framed(words.ids(t), words.end, self.spec.net.context) for t in texts]
            tokens, length = (
                torch.from_numpy(np.stack([m[k] for m in framed_texts]))
                for k in ("tokens", "length")
            )
        else:
            tokens, length = texts

        def draw(tokens: Tensor, length: Tensor) -> Tensor:
            B, G = len(tokens), self.spec.net.grid
            u = random.uniform(
                random.step_key(seed, 0, tokens.device),
                "sample",
                first + torch.arange(B, device=tokens.device),
                G * G,
            )
            cache = self.net.prefill(tokens.long(), self.unused(length))
            codes = torch.zeros(B, G * G, dtype=torch.int64, device=tokens.device)
            for i in range(G * G):
                logits = self.net.step(codes[:, i - 1] if i else None, i, cache, B)
                codes[:, i] = drawn(logits, u[:, i], temperature)
            return unmapped(self.codec.decoder.of_codes(torch.unflatten(codes, 1, (G, G))))

        return self.context.run_probe(draw, tokens, length)

    def _probe_cut(self, texts: list[str]) -> tuple[int, int]:
        """How many captions are longer than what is read of one, and that number of tokens."""
        return tokenizer(self.context.tokenizer).cut(texts, self.spec.net.context)
