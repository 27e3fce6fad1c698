"""Text transformers, pre-norm: CLIP's (Radford et al. 2021), causal, pooled at the end token (the largest id), and
SigLIP's (Zhai et al. 2023), where every token sees every other, pooled at the last position. B texts, T tokens, C width.
"""

import torch
from torch import Tensor, nn

from vtx_scale.blocks.attention import Block
from vtx_scale.specs.clip import TextTower
from vtx_scale.specs.siglip import SiglipText as SiglipSpec


class Text(nn.Module):
    """(B, T) token ids -> (B, C)."""

    def __init__(self, spec: TextTower) -> None:
        super().__init__()
        C = spec.width
        self.embedding = nn.Embedding(spec.vocab, C)
        self.positions = nn.Parameter(torch.empty(spec.context, C))
        self.blocks = nn.ModuleList(Block(C, spec.heads, 4 * C, spec.activation, 1e-5, causal=True)
                                    for _ in range(spec.depth))
        self.norm = nn.LayerNorm(C, eps=1e-5)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        x = self.embedding(tokens_BT) + self.positions[: tokens_BT.shape[1]]
        for block in self.blocks:
            x = block(x)
        end = tokens_BT.argmax(1)
        return self.norm(x[torch.arange(len(x), device=x.device), end])


class SiglipText(nn.Module):
    """(B, T) token ids, padded to the whole context -> (B, embed)."""

    def __init__(self, spec: SiglipSpec) -> None:
        super().__init__()
        C = spec.width
        self.embedding = nn.Embedding(spec.vocab, C)
        self.positions = nn.Parameter(torch.empty(spec.context, C))
        self.blocks = nn.ModuleList(Block(C, spec.heads, spec.mlp, spec.activation, spec.eps) for _ in range(spec.depth))
        self.norm = nn.LayerNorm(C, eps=spec.eps)
        self.head = nn.Linear(C, spec.embed)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        x = self.embedding(tokens_BT) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, -1]))
