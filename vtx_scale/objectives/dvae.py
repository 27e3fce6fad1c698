"""DALL-E's first stage (Ramesh et al. 2021, arXiv:2102.12092, A.1 to A.3):
pictures as grids of discrete codes.

B pictures of S x S, K codes. The loss of a picture, a number a channel: minus its logarithmic
likelihood under a Laplace law of the logits, plus kl times the divergence of the codes from equally
likely. Codes are drawn by Gumbel-softmax, soft in both directions. Evaluations take the likeliest
code, and the average of the weights.
Departs: pictures are resized with antialiasing where the paper takes area means.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vtx_scale.backbones import dvae
from vtx_scale.blocks.autocast import no_autocast
from vtx_scale.blocks.rules import under
from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.objectives.base import Context, Follower, Objective
from vtx_scale.objectives.image_reader import ImageReader
from vtx_scale.specs.dvae import DvaeConfig, half_cosine
from vtx_scale.specs.run import Data

EPS = 0.1  # pixels are mapped into [EPS, 1 - EPS]
TINY = 2.0**-25  # below any uniform number but zero


def mapped(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 (B, S, S, 3) -> (B, 3, S, S) in [0.1, 0.9], as the networks see pictures."""
    wide = torch.promote_types(dtype, torch.float32)
    return ((1 - 2 * EPS) / 255 * pixels.to(wide) + EPS).permute(0, 3, 1, 2).to(dtype)


def unmapped(out: Tensor) -> Tensor:
    """The decoder's (B, 6, S, S) -> pixels (B, S, S, 3), 0..255: where the law's centre lies."""
    return ((torch.sigmoid(out[:, :3]) - EPS) / (1 - 2 * EPS)).clamp(0, 1).permute(0, 2, 3, 1) * 255


def logit_laplace(x: Tensor, out: Tensor) -> Tensor:
    """(B,) minus the logarithm of the likelihood of x (B, 3, S, S), in nats; out (B, 6, S, S):
    locations, log scales.
    """
    location, log_scale = out.chunk(2, dim=1)
    nats = (
        math.log(2)
        + log_scale
        + torch.log(x * (1 - x))
        + (torch.logit(x) - location).abs() * torch.exp(-log_scale)
    )
    return nats.sum((1, 2, 3))


def divergence(log_q: Tensor) -> Tensor:
    """(B, h, h) of each place from K equally likely codes, in nats. log_q (B, K, h, h)."""
    return (log_q.exp() * log_q).sum(1) + math.log(log_q.shape[1])


class Dvae(Objective):
    def __init__(self, spec: DvaeConfig, context: Context) -> None:
        super().__init__(spec, context)
        self.spec: DvaeConfig = spec
        self.net = dvae.Codec(spec.net)
        self.average = dvae.Codec(spec.net).requires_grad_(False) if spec.average else None
        self.probes = {"codes": self.codes, "reconstruct": self.reconstruct, "decode": self.decode}
        rules = self.net.parameter_rules
        self.parameter_rules = (*under("net.", rules), *under("average.", rules))

    @staticmethod
    def reader(spec: DvaeConfig, data: Data, train: bool) -> ImageReader:
        return ImageReader(spec.net.resolution, data, train)

    def parts(self) -> list[dvae.Codec]:
        return [self.net] if self.average is None else [self.net, self.average]

    def units(self) -> Iterable[nn.Module]:
        return [unit for part in self.parts() for unit in part.units()]

    def followers(self) -> Iterable[Follower]:
        return (
            []
            if self.average is None
            else [Follower(self.average, self.net, lambda step: self.spec.average)]
        )

    def mapped_input(self, pixels: Tensor) -> Tensor:
        """As the networks take pictures, in the type that they are computed in."""
        return mapped(pixels, self.net.encoder.input.weight.dtype)

    def forward(self, batch: Batch, step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        spec = self.spec
        logits_BKhh = self.net.encoder(self.mapped_input(batch["image"]))
        log_q = logits_BKhh.log_softmax(1)
        u = (
            self.context.slots(batch, step)
            .uniform("gumbel", *logits_BKhh.shape[1:])
            .clamp(min=TINY)
            .to(log_q.dtype)
        )
        warm = half_cosine(1.0, spec.temperature, step, spec.temperature_steps)
        out = self.net.decoder(((logits_BKhh - torch.log(-torch.log(u))) / warm).softmax(1))
        x = mapped(batch["image"], out.dtype)
        with no_autocast(x.device):
            nats_B, kl_B = logit_laplace(x, out), divergence(log_q).sum((1, 2))
        weight = half_cosine(spec.kl_start, spec.kl, step, spec.kl_steps)
        loss_B = (nats_B + weight * kl_B) / x[0].numel()
        count = batch.valid.sum().clamp(min=1)

        def counted(y_B: Tensor) -> Tensor:
            return torch.where(batch.valid, y_B, torch.zeros_like(y_B)).sum()

        log = {
            "nats": counted(nats_B) / count / x[0].numel(),
            "kl": counted(kl_B) / count / log_q[0, 0].numel(),
        }
        return counted(loss_B), {k: v.detach() for k, v in log.items()}

    @property
    def best(self) -> dvae.Codec:
        return self.net if self.average is None else self.average

    def codes(self, pixels: NDArray[Any] | Tensor) -> Tensor:
        """uint8 (B, S, S, 3) -> (B, h, h), whole numbers in 0..K-1: the likeliest."""
        return self.context.run_probe(
            lambda x: self.best.encoder(self.mapped_input(x)).argmax(1), torch.as_tensor(pixels)
        )

    def reconstruct(self, pixels: NDArray[Any] | Tensor) -> Tensor:
        """uint8 (B, S, S, 3) -> the same shape in 0..255: through the likeliest codes."""
        return self.context.run_probe(
            lambda x: unmapped(self.best(self.mapped_input(x))), torch.as_tensor(pixels)
        )

    def decode(self, codes: NDArray[Any] | Tensor) -> Tensor:
        """(B, h, h) codes -> (B, S, S, 3) in 0..255."""
        return self.context.run_probe(
            lambda c: unmapped(self.best.decoder.of_codes(c.long())), torch.as_tensor(codes)
        )
