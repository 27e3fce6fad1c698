"""Text transformers, pre-norm: CLIP's (Radford et al. 2021), causal, pooled at the end token
(the largest id), and SigLIP's (Zhai et al. 2023), where every token sees every other, pooled at
the last position.

B texts, T tokens, C width.
"""

import math

import torch
from torch import Tensor, nn

from vtx_scale.blocks.attention import NORMS, XAVIER, Block
from vtx_scale.blocks.rules import Rule, Rules, normal, uniform, zeros
from vtx_scale.specs.clip import TextTowerConfig
from vtx_scale.specs.siglip import SiglipTextConfig


class Text(nn.Module):
    """(B, T) token ids -> (B, C)."""

    def __init__(self, spec: TextTowerConfig) -> None:
        super().__init__()
        C = spec.width
        self.embedding = nn.Embedding(spec.vocab, C)
        self.positions = nn.Parameter(torch.empty(spec.context, C))
        self.blocks = nn.ModuleList(
            Block(C, spec.heads, 4 * C, spec.activation, 1e-5, causal=True)
            for _ in range(spec.depth)
        )
        self.norm = nn.LayerNorm(C, eps=1e-5)
        self.parameter_rules = clip_rules(spec)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        x = self.embedding(tokens_BT) + self.positions[: tokens_BT.shape[1]]
        for block in self.blocks:
            x = block(x)
        end = tokens_BT.argmax(1)
        pooled: Tensor = self.norm(x[torch.arange(x.shape[0], device=x.device), end])
        return pooled


class SiglipText(nn.Module):
    """(B, T) token ids, padded to the whole context -> (B, embed)."""

    def __init__(self, spec: SiglipTextConfig) -> None:
        super().__init__()
        C = spec.width
        self.embedding = nn.Embedding(spec.vocab, C)
        self.positions = nn.Parameter(torch.empty(spec.context, C))
        self.blocks = nn.ModuleList(
            Block(C, spec.heads, spec.mlp, spec.activation, spec.eps) for _ in range(spec.depth)
        )
        self.norm = nn.LayerNorm(C, eps=spec.eps)
        self.head = nn.Linear(C, spec.embed)
        self.parameter_rules = SIGLIP_RULES

    def forward(self, tokens_BT: Tensor) -> Tensor:
        x = self.embedding(tokens_BT) + self.positions
        for block in self.blocks:
            x = block(x)
        pooled: Tensor = self.head(self.norm(x[:, -1]))
        return pooled


def clip_rules(spec: TextTowerConfig) -> Rules:
    """OpenAI's: what a block adds is smaller by sqrt(2 depth);
    biases of the MLP as torch's default.
    """
    width = spec.width
    return (
        *NORMS,
        Rule(r"embedding\.weight", normal(0.02), hidden=False),
        Rule(r"positions", normal(0.01)),
        Rule(r".*\.attn\..*\.bias", zeros),
        Rule(r".*\.fc1\.bias", uniform(1 / math.sqrt(width))),
        Rule(r".*\.fc2\.bias", uniform(1 / math.sqrt(4 * width))),
        Rule(r".*\.qkv\.weight", normal(width**-0.5)),
        Rule(r".*\.fc1\.weight", normal((2 * width) ** -0.5)),
        Rule(r".*\.weight", normal(width**-0.5 * (2 * spec.depth) ** -0.5)),
    )


# a ViT's, but for positions and embedding, which go by the width; decay leaves what is
# no kernel alone
SIGLIP_RULES: Rules = (
    Rule(
        r"positions|embedding\.weight",
        normal(lambda shape: shape[-1] ** -0.5),
        decay=False,
        hidden=False,
    ),
    Rule(r"head\.weight", normal(lambda shape: shape[1] ** -0.5)),
    Rule(r"head\.bias", zeros),
    *XAVIER,
)
