"""VirTex (Desai & Johnson 2021, arXiv:2006.06666): a ResNet from scratch by writing captions, forwards and backwards.

B samples, T tokens, V words. The loss is the cross-entropy of the forward direction plus that of the backward one, each a mean
over all tokens of the batch that follow another. The trunk has its own rate (`optim.trunk_lr`).
Departs: batch statistics are over the global batch, where the authors' were a GPU's own 32; the vocabulary is a tokenizer.json
of ours (byte-level BPE), which keeps accents.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtx_scale.backbones import captioner, resnet
from vtx_scale.blocks.rows import Rows
from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.data_pipeline.text import tokenizer
from vtx_scale.distributed.ranks import Ranks
from vtx_scale.objectives.base import Objective
from vtx_scale.objectives.pairs import refuse_words
from vtx_scale.objectives.pixels import STATISTICS, normalised
from vtx_scale.objectives.probes import image_probes
from vtx_scale.objectives.virtex_reader import VirtexReader
from vtx_scale.specs.run import Spec
from vtx_scale.specs.virtex import Virtex as VirtexSpec


class Virtex(Objective):
    separable = False  # batch statistics couple the batch
    heeds = ("crop", "ratio", "flip", "bicubic", "centre", "tokenizer")

    def __init__(self, spec: VirtexSpec, ranks: Ranks) -> None:
        super().__init__(spec, ranks)
        self.spec: VirtexSpec = spec
        self.net = resnet.ResNet(spec.net)
        self.text = captioner.Captioner(spec)
        self.tokenizer = "bytes"
        self.probes = {**image_probes(self, self.net, "imagenet"), "caption_ids": self.caption_ids, "caption": self.caption}

    @staticmethod
    def reader(spec: VirtexSpec, data: Any, train: bool) -> VirtexReader:
        refuse_words(data.tokenizer, spec.vocab, "objective.vocab")
        return VirtexReader(spec, data, train)

    def units(self) -> Iterable[nn.Module]:
        return [*self.net.units(), *self.text.units()]

    def count(self, batch: Batch) -> Tensor:
        """Tokens that follow another, of valid slots."""
        return ((batch["length"] - 1).clamp(min=0) * batch.valid).sum()

    def initial(self, name: str, shape: torch.Size) -> tuple[str, float]:
        part, _, rest = name.partition(".")
        return resnet.initial(rest, shape, self.spec.net) if part == "net" else captioner.initial(rest, shape)

    def trunk(self, name: str) -> bool:
        return name.startswith("net.")

    def undecayed(self, name: str, parameter: Tensor) -> bool:
        """Norms and biases of the textual transformer, and nothing else: as the authors' pattern has it."""
        return name.startswith(("text.forwards.", "text.backwards.", "text.norm.")) and parameter.ndim < 2

    def forward(self, batch: Batch, step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        rows = self.rows(batch, step)
        x = normalised(batch["image"], "imagenet", self.text.bias.dtype)
        look = self.text.look(self.net.maps(x, rows))
        tokens, length = batch["tokens"].long(), batch["length"]
        seen = {"forward_nats": self.nats(tokens, length, look, batch.valid, rows)}
        if self.text.backwards is not None:
            seen["backward_nats"] = self.nats(backwards(tokens, length), length, look, batch.valid, rows, back=True)
        count = self.count(batch).clamp(min=1)
        return torch.stack(list(seen.values())).sum(), {k: v.detach() / count for k, v in seen.items()}

    def nats(self, tokens_BT: Tensor, length_B: Tensor, look: Tensor, valid_B: Tensor, rows: Rows,
             back: bool = False) -> Tensor:
        """The summed cross-entropy of every token that follows another, of valid samples."""
        logits = self.text(tokens_BT, length_B, look, back, rows)[:, :-1]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        nats = F.cross_entropy(logits.transpose(1, 2), tokens_BT[:, 1:], reduction="none")
        there = (torch.arange(1, tokens_BT.shape[1], device=nats.device) < length_B[:, None]) & valid_B[:, None]
        return torch.where(there, nats, torch.zeros_like(nats)).sum()

    def exported(self) -> tuple[Spec, dict[str, Tensor], tuple[float, ...], tuple[float, ...]]:
        """The trunk alone."""
        return self.spec.net, self.net.state_dict(), *STATISTICS["imagenet"]

    def caption_ids(self, pixels: np.ndarray | Tensor) -> Tensor:
        """uint8 (B, S, S, 3) -> (B, T) token ids of the likeliest caption that beam search finds, zeros behind the end."""
        start, end = tokenizer(self.tokenizer).start, tokenizer(self.tokenizer).end

        def search(x: Tensor) -> Tensor:
            look = self.text.look(self.net.maps(normalised(x, "imagenet", self.text.bias.dtype)))
            return torch.stack([self.written(one[None], start, end) for one in look])

        return self.ask(search, torch.as_tensor(pixels)).long()

    def written(self, look: Tensor, start: int, end: int) -> Tensor:
        """(T,) by the forward direction: of `beam` captions at a time the sum of the words' logarithms decides."""
        spec, device = self.spec, look.device
        tokens = torch.zeros(1, spec.context, dtype=torch.int64, device=device)
        tokens[0, 0] = start
        score, done = torch.zeros(1, device=device), torch.zeros(1, dtype=torch.bool, device=device)
        for t in range(1, spec.context):
            length = torch.full((len(tokens),), t, device=device)
            log = self.text(tokens, length, look.expand(len(tokens), -1, -1))[:, t - 1].float().log_softmax(1)
            log = torch.where(done[:, None], torch.full_like(log, float("-inf")), log)
            log[:, 0] = torch.where(done, torch.zeros_like(score), log[:, 0])  # one that has ended goes on as it is
            total = (score[:, None] + log).flatten()
            score, place = total.topk(min(spec.beam, len(total)))
            parent, word = place // spec.vocab, place % spec.vocab
            tokens, done = tokens[parent].clone(), done[parent]
            tokens[:, t] = torch.where(done, torch.zeros_like(word), word)
            done = done | (word == end)
            if bool(done.all()):
                break
        return tokens[0]

    def caption(self, pixels: np.ndarray | Tensor) -> list[str]:
        """uint8 (B, S, S, 3) -> a caption each."""
        return [tokenizer(self.tokenizer).decode(ids) for ids in self.caption_ids(pixels).tolist()]


def backwards(tokens_BT: Tensor, length_B: Tensor) -> Tensor:
    """(B, T): what counts in reverse order, zeros behind it."""
    place = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
    at = (length_B[:, None] - 1 - place).clamp(min=0)
    return torch.where(place < length_B[:, None], tokens_BT.gather(1, at), torch.zeros_like(tokens_BT))
