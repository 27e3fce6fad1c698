"""iGPT (Chen et al. 2020, "Generative Pretraining from Pixels"):
pictures as sequences of colours, likelihood as the lesson.

B pictures, N pixels, K colours. A causal net says of every pixel which colour it has, given those
before it; the loss is the mean over pixels, in nats. A net that is not causal (BERT) says it of the
hidden ones; the loss is the mean over these, then over pictures. With a classifier (fine-tuning)
its cross-entropy is added.
Departs from the authors' evaluation of BERT nets, whose probes see hidden pixels too and vote over
five draws: ours see all.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from vtx_scale.backbones import igpt
from vtx_scale.blocks import random
from vtx_scale.blocks.attention import KVCache
from vtx_scale.blocks.rules import under
from vtx_scale.blocks.slots import SlotContext
from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.objectives.base import Context, Objective
from vtx_scale.objectives.image_reader import ImageReader
from vtx_scale.objectives.palette import Palette
from vtx_scale.specs.igpt import IgptConfig
from vtx_scale.specs.run import Data

Pictures = NDArray[Any] | Tensor


class Igpt(Objective):
    def __init__(self, spec: IgptConfig, context: Context) -> None:
        super().__init__(spec, context)
        self.spec: IgptConfig = spec
        self.net = igpt.PixelGPT(spec.net)
        self.palette = Palette(spec.palette)
        self.layer = spec.net.depth // 2 if spec.layer is None else spec.layer
        self.probes = {
            "features": self.features,
            "encode_image": lambda x: F.normalize(self.features(x), dim=-1),
            "loss": self._loss,
        }
        if spec.net.classes:
            self.probes["classify"] = self._classify
        if spec.net.causal:
            self.probes["complete"] = self.complete
        self.parameter_rules = under("net.", self.net.parameter_rules)

    @staticmethod
    def reader(spec: IgptConfig, data: Data, train: bool) -> ImageReader:
        return ImageReader(spec.net.side, data, train, classes=spec.net.classes)

    def units(self) -> Iterable[nn.Module]:
        return self.net.units()

    def hidden(self, slots: SlotContext) -> Tensor | None:
        """(B, N) bool: which pixels a net that is not causal must guess."""
        return (
            None
            if self.spec.net.causal
            else slots.uniform("hidden", self.spec.net.side**2) < self.spec.hidden
        )

    def nats(self, states_BNC: Tensor, tokens_BN: Tensor, hidden_BN: Tensor | None) -> Tensor:
        """(B,) the mean cross-entropy of a picture's pixels, or of its hidden ones."""
        logits_BNK = self.net.out(states_BNC)
        logits_BNK = logits_BNK.to(torch.promote_types(logits_BNK.dtype, torch.float32))
        nats_BN = F.cross_entropy(logits_BNK.transpose(1, 2), tokens_BN, reduction="none")
        if hidden_BN is None:
            return nats_BN.mean(1)
        return (nats_BN * hidden_BN).sum(1) / hidden_BN.sum(1).clamp(min=1)

    def forward(self, batch: Batch, step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        spec = self.spec
        tokens_BN, hidden_BN = (
            self.palette.tokens(batch["image"]),
            self.hidden(self.context.slots(batch, step)),
        )
        states_BNC = self.net.states(tokens_BN, hidden_BN)
        count = batch.valid.sum().clamp(min=1)

        def counted(x_B: Tensor) -> Tensor:
            return torch.where(batch.valid, x_B, torch.zeros_like(x_B)).sum()

        nats = counted(self.nats(states_BNC, tokens_BN, hidden_BN))
        if not spec.net.classes:
            return nats, {}
        logits_BK = self.classified(states_BNC)
        logits_BK = logits_BK.to(nats.dtype)
        label = batch["label"].clamp(min=0)
        right = ((logits_BK.argmax(1) == label) & batch.valid).sum() / count
        loss = spec.generative * nats + counted(F.cross_entropy(logits_BK, label, reduction="none"))
        return loss, {"nats": nats.detach() / count, "accuracy": right}

    def classified(self, states_BNC: Tensor) -> Tensor:
        """(B, classes) logits, of the mean over pixels."""
        assert self.net.head is not None
        logits: Tensor = self.net.head(states_BNC.mean(1))
        return logits

    def features(self, pixels: Pictures) -> Tensor:
        """uint8 (B, S, S, 3) -> (B, C): the mean over pixels of what enters the
        recipe's layer, normed.
        """
        return self.context.run_probe(
            lambda x: self.net.features(self.palette.tokens(x), [self.layer]),
            torch.as_tensor(pixels),
        )

    def _classify(self, pixels: Pictures) -> Tensor:
        return self.context.run_probe(
            lambda x: self.classified(self.net.states(self.palette.tokens(x))),
            torch.as_tensor(pixels),
        )

    def _loss(self, pixels: Pictures, ids: Tensor) -> Tensor:
        """uint8 (B, S, S, 3) and the samples' numbers -> (B,) mean nats a pixel,
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
            tokens, hidden = self.palette.tokens(x), self.hidden(slots)
            return self.nats(self.net.states(tokens, hidden), tokens, hidden)

        return self.context.run_probe(nats, torch.as_tensor(pixels), ids)

    def complete(
        self, pixels: Pictures, given: int, seed: int = 0, temperature: float = 1.0, first: int = 0
    ) -> Tensor:
        """uint8 (B, S, S, 3), of which the first `given` pixels in raster order are kept and the
        others drawn -> the same shape, float32 whole numbers.

        given=0 draws whole pictures.

        A picture's random numbers belong to the seed and to its place among the pictures, of which
        these are first, ...
        """

        def draw(x: Tensor) -> Tensor:
            tokens, N, B = self.palette.tokens(x), self.spec.net.side**2, len(x)
            u = random.uniform(
                random.step_key(seed, 0, x.device),
                "complete",
                first + torch.arange(B, device=x.device),
                N,
            )
            cache = [KVCache(N) for _ in self.net.blocks]
            for i in range(N):
                logits = self.net.step(tokens[:, i - 1] if i else None, i, cache, B)
                if i >= given:
                    tokens[:, i] = drawn(logits, u[:, i], temperature)
            return self.palette.pixels(tokens)

        return self.context.run_probe(draw, torch.as_tensor(pixels))


def drawn(logits_BK: Tensor, u_B: Tensor, temperature: float = 1.0) -> Tensor:
    """(B,) int64: a draw from the softmax by inverting its distribution function at u in [0, 1)."""
    mass = (logits_BK.double() / temperature).softmax(1).cumsum(1)
    return torch.searchsorted(mass, (u_B.double() * mass[:, -1])[:, None], right=True)[:, 0].clamp(
        max=logits_BK.shape[1] - 1
    )
