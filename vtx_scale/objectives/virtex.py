"""VirTex (Desai & Johnson 2021, arXiv:2006.06666): a ResNet from scratch by writing captions,
forwards and backwards.

B samples, T tokens, V words. The loss is the cross-entropy of the forward direction plus that of
the backward one, each a mean over all tokens of the batch that follow another. The trunk has its
own rate (`optim.trunk_lr`).
Captions are written by the authors' beam search: two words a beam, and never the last one again.
Departs: batch statistics are over the global batch, where the authors' were a GPU's own 32; the
vocabulary is a tokenizer.json of ours (byte-level BPE), which keeps accents, and of which id 0 is a
word that starts as any other; the search keeps the start token in front, which the authors' leaves
out behind its first step.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from vtx_scale.backbones import build_network, captioner
from vtx_scale.blocks.rules import under
from vtx_scale.blocks.slots import SlotContext
from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.data_pipeline.text import tokenizer
from vtx_scale.objectives.base import Context, Objective
from vtx_scale.objectives.pixels import normalised
from vtx_scale.objectives.probes import image_probes
from vtx_scale.objectives.virtex_reader import VirtexReader
from vtx_scale.specs.run import Data
from vtx_scale.specs.virtex import VirtexConfig

WORDS = 2  # that may follow each caption of a beam, but for the first word


class Virtex(Objective):
    def __init__(self, spec: VirtexConfig, context: Context) -> None:
        super().__init__(spec, context)
        self.spec: VirtexConfig = spec
        self.net = build_network(spec.net)
        self.text = captioner.Captioner(spec)
        self.probes = {
            **image_probes(self, self.net, "imagenet"),
            "caption_ids": self.caption_ids,
            "caption": self.caption,
        }
        # decay leaves norms and biases of the textual transformer alone, the trunk's not: as the
        # authors' pattern has it
        trunk = under("net.", self.net.parameter_rules, group="trunk", decay=True)
        self.parameter_rules = (*trunk, *under("text.", self.text.parameter_rules))

    @staticmethod
    def reader(spec: VirtexConfig, data: Data, train: bool) -> VirtexReader:
        return VirtexReader(spec, data, train)

    def units(self) -> Iterable[nn.Module]:
        return [*self.net.units(), *self.text.units()]

    def count(self, batch: Batch) -> Tensor:
        """Tokens that follow another, of valid slots."""
        return ((batch["length"] - 1).clamp(min=0) * batch.valid).sum()

    def forward(self, batch: Batch, step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        slots = self.context.slots(batch, step)
        x = normalised(batch["image"], "imagenet", self.text.bias.dtype)
        memory = self.text.project(self.net.pyramid(x, slots)[-1])
        tokens, length = batch["tokens"].long(), batch["length"]
        log = {"forward_nats": self.nats(tokens, length, memory, batch.valid, slots)}
        if self.text.backwards is not None:
            log["backward_nats"] = self.nats(
                backwards(tokens, length), length, memory, batch.valid, slots, back=True
            )
        count = self.count(batch).clamp(min=1)
        return torch.stack(list(log.values())).sum(), {
            k: v.detach() / count for k, v in log.items()
        }

    def nats(
        self,
        tokens_BT: Tensor,
        length_B: Tensor,
        memory: Tensor,
        valid_B: Tensor,
        slots: SlotContext,
        back: bool = False,
    ) -> Tensor:
        """The summed cross-entropy of every token that follows another, of valid samples."""
        logits = self.text(tokens_BT, length_B, memory, back, slots)[:, :-1]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        nats = F.cross_entropy(logits.transpose(1, 2), tokens_BT[:, 1:], reduction="none")
        there = (
            torch.arange(1, tokens_BT.shape[1], device=nats.device) < length_B[:, None]
        ) & valid_B[:, None]
        return torch.where(there, nats, torch.zeros_like(nats)).sum()

    @staticmethod
    def macs(spec: VirtexConfig, count: Callable[..., int]) -> int:
        """Of the trunk and of each direction over a whole context."""
        text, side = captioner.Captioner(spec), spec.net.resolution // spec.net.strides[-1]
        picture = torch.empty(1, spec.net.widths[-1], side, side)
        tokens, length = (torch.empty(1, n, dtype=torch.int64) for n in (spec.context, 1))
        memory = text.project(picture)
        ways = (False, True) if spec.directions == "both" else (False,)
        decoders = sum(count(text, tokens, length.flatten(), memory, back) for back in ways)
        return count(spec.net) + count(text.project, picture) + decoders

    def caption_ids(self, pixels: NDArray[Any] | Tensor) -> Tensor:
        """uint8 (B, S, S, 3) -> (B, T) token ids of the likeliest caption that beam search finds,
        zeros behind the end.
        """
        start, end = tokenizer(self.context.tokenizer).start, tokenizer(self.context.tokenizer).end

        def search(x: Tensor) -> Tensor:
            memory = self.text.project(
                self.net.pyramid(normalised(x, "imagenet", self.text.bias.dtype))[-1]
            )
            return torch.stack([self.written(one[None], start, end) for one in memory])

        return self.context.run_probe(search, torch.as_tensor(pixels)).long()

    def written(self, memory: Tensor, start: int, end: int) -> Tensor:
        """(T,) by the forward direction: of `beam` captions at a time the sum of the
        words' logarithms decides. No word stands twice in a row.
        """
        spec, device = self.spec, memory.device
        tokens = torch.zeros(1, spec.context, dtype=torch.int64, device=device)
        tokens[0, 0] = start
        score, done = torch.zeros(1, device=device), torch.zeros(1, dtype=torch.bool, device=device)
        for t in range(1, spec.context):
            length = torch.full((len(tokens),), t, device=device)
            log = (
                self.text(tokens, length, memory.expand(len(tokens), -1, -1))[:, t - 1]
                .float()
                .log_softmax(1)
            )
            if t > 1:
                log = log.scatter(1, tokens[:, t - 1 : t], float("-inf"))
            log = torch.where(done[:, None], torch.full_like(log, float("-inf")), log)
            # one that has ended goes on as it is
            log[:, 0] = torch.where(done, torch.zeros_like(score), log[:, 0])
            words = min(spec.vocab, WORDS if t > 1 else spec.beam)
            top, word = log.topk(words, dim=1)
            score, place = (score[:, None] + top).flatten().topk(min(spec.beam, top.numel()))
            parent, word = place // words, word.flatten()[place]
            tokens, done = tokens[parent].clone(), done[parent]
            tokens[:, t] = torch.where(done, torch.zeros_like(word), word)
            done = done | (word == end)
            if bool(done.all()):
                break
        return tokens[0]

    def caption(self, pixels: NDArray[Any] | Tensor) -> list[str]:
        """uint8 (B, S, S, 3) -> a caption each."""
        return [
            tokenizer(self.context.tokenizer).decode(ids)
            for ids in self.caption_ids(pixels).tolist()
        ]


def backwards(tokens_BT: Tensor, length_B: Tensor) -> Tensor:
    """(B, T): what counts in reverse order, zeros behind it."""
    place = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
    at = (length_B[:, None] - 1 - place).clamp(min=0)
    return torch.where(
        place < length_B[:, None], tokens_BT.gather(1, at), torch.zeros_like(tokens_BT)
    )
