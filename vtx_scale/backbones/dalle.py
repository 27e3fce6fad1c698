"""DALL-E's sparse transformer (Ramesh et al. 2021, arXiv:2102.12092, B.1 and figure 11):
a caption, then a picture's codes.

B samples, T text places, G x G codes, N = 1 + T + G G places, C width, H heads of D. A caption's
places see each other causally. A code's place sees every place of the text, and of the codes before
it those of a pattern:
  row     the G before it and itself, over the ends of rows;
  column  those above it and itself;
  conv    a square of 11 x 11 around it, as far as it lies before it, over the ends of rows.
One softmax goes over text and codes together. Only the pairs of a pattern (and of the rows that
it touches) are computed. Place i of the codes holds code i - 1, the first a start vector, and
says code i. Not published, and so here: biases everywhere, GELU, pre-norm, a start vector each
for text and codes.
"""

import functools
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtx_scale.blocks.attention import MLP, KVCache, block_cuts
from vtx_scale.blocks.autocast import no_autocast
from vtx_scale.blocks.cuts import Cuts
from vtx_scale.blocks.norm import NORMS
from vtx_scale.blocks.rules import Rule, Rules, normal, zeros
from vtx_scale.specs.dalle import TextToCodesConfig

EPS = 1e-5


def kind_of(layer: int, depth: int) -> str:
    """Of layer 1 .. depth: conv at the end, every fourth from the second on column, else row."""
    return "conv" if layer == depth else "column" if layer % 4 == 2 else "row"


def sees(
    kind: str,
    grid: int,
    reach: int,
    device: torch.device | str = "cpu",
    place: int | None = None,
) -> Tensor:
    """(G G, G G) bool: whether a code's place (rows) looks at another (columns).

    The patterns as they are defined. place: one row of it, (1, G G).
    """
    i = torch.arange(grid * grid, device=device)
    back = (i if place is None else i[place : place + 1])[:, None] - i[None]
    if kind == "row":
        return (back >= 0) & (back <= grid)
    if kind == "column":
        return (back >= 0) & (back % grid == 0)
    up = (back + reach) // grid  # back = grid * up + left, left in -reach .. reach
    left = back - grid * up
    return (back >= 0) & (up >= 0) & (up <= reach) & (left.abs() <= reach)


@functools.lru_cache(1 << 13)
def columns(kind: str, grid: int, reach: int, place: int, device: torch.device) -> Tensor:
    """(n,) int64, ascending: the codes' places that one of them looks at, itself the last.

    Kept, as every layer of a kind and every picture ask for them again.
    """
    return sees(kind, grid, reach, device, place)[0].nonzero()[:, 0]


class Attention(nn.Module):
    def __init__(self, spec: TextToCodesConfig, kind: str) -> None:
        super().__init__()
        self.spec, self.kind, self.head_width = spec, kind, spec.width // spec.heads
        # rows of codes that a row's places touch
        self.above = min(spec.grid, {"row": 1, "conv": spec.reach + 1}.get(kind, 0))
        self.qkv = nn.Linear(spec.width, 3 * spec.width)
        self.proj = nn.Linear(spec.width, spec.width)

    def forward(self, x_BNC: Tensor, cache: KVCache | None = None) -> Tensor:
        """cache: x is the text, or one place of the codes,
        which sees what it may of those before and itself.
        """
        N = x_BNC.shape[1]
        q, k, v = self.qkv(x_BNC).unflatten(2, (3, -1, self.head_width)).permute(2, 0, 3, 1, 4)
        if cache is not None:
            k, v = cache.add(k, v)
            if N == 1:
                k, v = self.seen(k, v)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=N > 1)
        else:
            T = 1 + self.spec.context
            text = F.scaled_dot_product_attention(
                q[:, :, :T], k[:, :, :T], v[:, :, :T], is_causal=True
            )
            y = torch.cat([text, self.of_codes(q[:, :, T:], k, v)], dim=2)
        out: Tensor = self.proj(y.transpose(1, 2).flatten(2))
        return out

    def seen(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Of keys and values (B, H, n, D) of all places until now those that the last of them
        looks at: at most 318 of 1,281 as published.
        """
        spec, T = self.spec, 1 + self.spec.context
        at = k.shape[2] - 1 - T
        if at < 0:
            return k, v
        places = T + columns(self.kind, spec.grid, spec.reach, at, k.device)
        near_k, near_v = (t.index_select(2, places) for t in (k, v))
        return torch.cat([k[:, :, :T], near_k], 2), torch.cat([v[:, :, :T], near_v], 2)

    def of_codes(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, H, G G, D): q of the codes, k and v (B, H, N, D) of all places."""
        spec, G, T = self.spec, self.spec.grid, 1 + self.spec.context
        text_k, text_v = k[:, :, :T], v[:, :, :T]
        # (B, H, G, G, D): rows of codes, or columns
        q, code_k, code_v = (torch.unflatten(t, 2, (G, G)) for t in (q, k[:, :, T:], v[:, :, T:]))
        pattern = sees(self.kind, G, spec.reach, q.device)
        if self.kind == "column":
            q, code_k, code_v = (t.transpose(2, 3) for t in (q, code_k, code_v))
            mask = torch.ones(G, G, dtype=torch.bool, device=q.device).tril()  # of every column
        else:  # a row of places beside its own and the `above` rows of keys
            up = self.above
            code_k, code_v = (
                F.pad(t, (0, 0, 0, 0, up, 0))
                .unfold(2, up + 1, 1)
                .permute(0, 1, 2, 5, 3, 4)
                .flatten(3, 4)
                for t in (code_k, code_v)
            )
            # (G, G, G, G, up + 1)
            mask = F.pad(pattern.view(G, G, G, G), (0, 0, up, 0)).unfold(2, up + 1, 1)
            rows = torch.arange(G, device=q.device)
            mask = mask[rows, :, rows].permute(0, 1, 3, 2).flatten(2)  # (G, G, (up + 1) G)
        scale = q.shape[-1] ** -0.5
        near = (q @ code_k.transpose(-1, -2) * scale).masked_fill(~mask, float("-inf"))
        far = torch.unflatten(q.flatten(2, 3) @ text_k.transpose(-1, -2) * scale, 2, (G, G))
        share = torch.cat([far, near], dim=-1).softmax(-1)
        of_text = torch.unflatten(share[..., :T].flatten(2, 3) @ text_v, 2, (G, G))
        y = of_text + share[..., T:] @ code_v
        return (y.transpose(2, 3) if self.kind == "column" else y).flatten(2, 3)


class Block(nn.Module):
    """x += attention(norm(x)); x += mlp(norm(x))."""

    def __init__(self, spec: TextToCodesConfig, kind: str) -> None:
        super().__init__()
        self.heads = spec.heads
        self.norm1 = nn.LayerNorm(spec.width, eps=EPS)
        self.attn = Attention(spec, kind)
        self.norm2 = nn.LayerNorm(spec.width, eps=EPS)
        self.mlp = MLP(spec.width, 4 * spec.width, "gelu")

    def cuts(self) -> Cuts:
        """Where tensor parallelism cuts it."""
        return block_cuts(self.heads)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        x = x + self.attn(self.norm1(x), cache)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class TextToCodes(nn.Module):
    """Tokens (B, T) and codes (B, G G) -> logits (B, T, V) of the tokens and (B, G G,
    K) of the codes.

    unused (B, T) bool: places behind the end of a caption, which take a learned vector each.
    """

    def __init__(self, spec: TextToCodesConfig) -> None:
        super().__init__()
        self.spec = spec
        C = spec.width
        self.text = nn.Embedding(spec.vocab, C)
        self.padding = nn.Parameter(torch.empty(1, spec.context, C))
        self.text_positions = nn.Parameter(torch.empty(1, spec.context, C))
        self.code = nn.Embedding(spec.codes, C)
        self.rows = nn.Parameter(torch.empty(1, spec.grid, 1, C))
        self.columns = nn.Parameter(torch.empty(1, 1, spec.grid, C))
        self.starts = nn.Parameter(torch.empty(1, 2, C))
        self.blocks = nn.ModuleList(
            Block(spec, kind_of(i + 1, spec.depth)) for i in range(spec.depth)
        )
        self.norm = nn.LayerNorm(C, eps=EPS)
        self.text_out = nn.Linear(C, spec.vocab)
        self.code_out = nn.Linear(C, spec.codes)
        self.parameter_rules = rules(spec)

    def units(self) -> Iterable[nn.Module]:
        return self.blocks

    def embed_text(self, tokens_BT: Tensor, unused_BT: Tensor) -> Tensor:
        """(B, 1 + T, C): the start and the caption."""
        x = (
            torch.where(unused_BT[..., None], self.padding, self.text(tokens_BT))
            + self.text_positions
        )
        return torch.cat([self.starts[:, :1].expand(len(x), -1, -1), x], dim=1)

    def embed_codes(self, codes: Tensor) -> Tensor:
        """(B, G G, C): the start and all codes but the last."""
        places = (self.rows + self.columns).flatten(1, 2)
        x = self.code(codes[:, :-1]) + places[:, :-1]
        return torch.cat([self.starts[:, 1:].expand(len(x), -1, -1), x], dim=1)

    def forward(self, tokens_BT: Tensor, unused_BT: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat([self.embed_text(tokens_BT, unused_BT), self.embed_codes(codes)], dim=1)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        T = self.spec.context
        return self.logits(self.text_out, x[:, :T]), self.logits(self.code_out, x[:, T + 1 :])

    def logits(self, layer: nn.Linear, x: Tensor) -> Tensor:
        """Logits in at least float32."""
        with no_autocast(x.device):
            out: Tensor = layer(x.to(torch.promote_types(x.dtype, torch.float32)))
            return out

    def prefill(self, tokens_BT: Tensor, unused_BT: Tensor) -> list[KVCache]:
        """What the blocks keep of a caption, for `step`."""
        cache = [KVCache(1 + self.spec.context + self.spec.grid**2) for _ in self.blocks]
        self.run_blocks(self.embed_text(tokens_BT, unused_BT), cache)
        return cache

    def step(self, code_B: Tensor | None, place: int, cache: list[KVCache], rows: int) -> Tensor:
        """(rows, K) logits of the code at `place`, given the one before it (None at the first
        place) and the cache.
        """
        if code_B is None:
            x = self.starts[:, 1:].expand(rows, -1, -1)
        else:
            x = (self.code(code_B) + (self.rows + self.columns).flatten(1, 2)[:, place - 1])[
                :, None
            ]
        return self.logits(self.code_out, self.norm(self.run_blocks(x, cache)))[:, 0]

    def run_blocks(self, x: Tensor, cache: list[KVCache]) -> Tensor:
        for block, p in zip(self.blocks, cache, strict=True):
            x = block(x, p)
        return x


def rules(spec: TextToCodesConfig) -> Rules:
    """GPT-2's (the paper says nothing): N(0, 0.02), what a block adds smaller by sqrt(2
    depth); biases zero.

    What the paper keeps in float32: embeddings and the layers that say the tokens.
    """
    return (
        *NORMS,
        Rule(r"(text_out|code_out)\.bias", zeros, keep_float32=True),
        Rule(r".*bias", zeros),
        Rule(r".*(proj|fc2)\.weight", normal(0.02 * (2 * spec.depth) ** -0.5)),
        Rule(
            r"(text|code|text_out|code_out)\.weight",
            normal(0.02),
            keep_float32=True,
            hidden=False,
        ),
        Rule(r".*", normal(0.02)),
    )
