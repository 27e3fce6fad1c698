"""iGPT's transformer (Chen et al. 2020): pre-norm without means and biases, a token a pixel,
row after row.

B pictures, N pixels, C width, K colours. A causal net is given [start, colour 0 .. colour N-2] and
says at each place which colour stands there; one that is not causal is given all colours, of which
some are hidden.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from vtx_scale.blocks.attention import MLP, Attention, KVCache, block_cuts
from vtx_scale.blocks.cuts import Cuts
from vtx_scale.blocks.rules import Rule, Rules, normal, ones, zeros
from vtx_scale.specs.igpt import PixelGPTConfig

EPS = 1e-5


class Block(nn.Module):
    """x += attention(norm(x)); x += mlp(norm(x)), RMS norms (Zhang & Sennrich 2019) and
    no bias anywhere.
    """

    def __init__(self, spec: PixelGPTConfig) -> None:
        super().__init__()
        C = spec.width
        self.norm1 = nn.RMSNorm(C, eps=EPS)
        self.attn = Attention(C, spec.heads, spec.causal, bias=False)
        self.norm2 = nn.RMSNorm(C, eps=EPS)
        self.mlp = MLP(C, 4 * C, "quick_gelu", bias=False)

    def cuts(self) -> Cuts:
        """Where tensor parallelism cuts it."""
        return block_cuts(self.attn.heads)

    def forward(self, x: Tensor, cache: KVCache | None = None, peek: bool = False) -> Tensor:
        """(B, N, C) -> (B, N, C); `peek`: instead the norm that opens the block,
        what a linear probe sees.
        """
        if peek:
            seen: Tensor = self.norm1(x)
            return seen
        x = x + self.attn(self.norm1(x), cache)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class PixelGPT(nn.Module):
    """(B, N) colours -> (B, N, K) logits."""

    def __init__(self, spec: PixelGPTConfig) -> None:
        super().__init__()
        self.spec = spec
        C = spec.width
        self.embedding = nn.Embedding(spec.colours, C)
        self.positions = nn.Parameter(torch.empty(1, spec.side**2, C))
        self.start = nn.Parameter(torch.empty(1, 1, C)) if spec.causal else None
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.depth))
        self.norm = nn.RMSNorm(C, eps=EPS)
        self.out = nn.Linear(C, spec.colours, bias=False)
        bias = spec.classifier_bias
        self.head = nn.Linear(C, spec.classes, bias=bias) if spec.classes else None
        self.parameter_rules = rules(spec)

    def units(self) -> Iterable[nn.Module]:
        return self.blocks

    def embed(self, tokens_BN: Tensor, hidden_BN: Tensor | None = None) -> Tensor:
        """(B, N, C): content, of which what is hidden is 0, and positions."""
        x = self.embedding(tokens_BN)
        if hidden_BN is not None:
            x = x.masked_fill(hidden_BN[..., None], 0)
        if self.start is not None:
            x = torch.cat([self.start.expand(x.shape[0], -1, -1).to(x.dtype), x[:, :-1]], dim=1)
        placed: Tensor = x + self.positions
        return placed

    def states(self, tokens_BN: Tensor, hidden_BN: Tensor | None = None) -> Tensor:
        """(B, N, C), after the final norm."""
        x = self.embed(tokens_BN, hidden_BN)
        for block in self.blocks:
            x = block(x)
        normed: Tensor = self.norm(x)
        return normed

    def forward(self, tokens_BN: Tensor, hidden_BN: Tensor | None = None) -> Tensor:
        logits: Tensor = self.out(self.states(tokens_BN, hidden_BN))
        return logits

    def features(self, tokens_BN: Tensor, layers: Sequence[int]) -> Tensor:
        """(B, len(layers) C): of each layer the mean over pixels of its normed input;
        layer `depth` is the final norm's.
        """
        x, found = self.embed(tokens_BN), {}
        for i in range(max(layers) + 1):
            last = i == len(self.blocks)
            if i in layers:
                found[i] = (self.norm(x) if last else self.blocks[i](x, peek=True)).mean(1)
            if not last and i < max(layers):
                x = self.blocks[i](x)
        return torch.cat([found[i] for i in layers], dim=1)

    def step(
        self, token_B: Tensor | None, place: int, cache: Sequence[KVCache], rows: int
    ) -> Tensor:
        """(rows, K) logits of the colour at `place`, given the one before it (None at the first
        place) and the past.
        """
        assert self.start is not None, "only a causal net can be asked step by step"
        x = self.start.expand(rows, -1, -1) if token_B is None else self.embedding(token_B)[:, None]
        x = x + self.positions[:, place : place + 1]
        for block, p in zip(self.blocks, cache, strict=True):
            x = block(x, cache=p)
        logits: Tensor = self.out(self.norm(x))[:, 0]
        return logits


def rules(spec: PixelGPTConfig) -> Rules:
    """The authors' initial values: the output layer starts at zero,
    so that the first loss is ln K.
    """
    C = spec.width
    return (
        Rule(r".*norm\w*\.weight", ones),
        Rule(r"out\..*", zeros, hidden=False),
        Rule(r"head\..*", zeros, group="head"),
        Rule(r".*\.qkv\.weight", normal(C**-0.5)),
        Rule(r".*\.proj\.weight", normal((C * spec.depth) ** -0.5)),
        Rule(r"positions", normal(0.01)),
        Rule(r"embedding\.weight", normal(0.02), hidden=False),
        Rule(r".*", normal(0.02)),
    )
