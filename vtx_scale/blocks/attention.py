"""The pre-norm transformer block. B rows, N tokens, C width, H heads."""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtx_scale.blocks.cuts import Colwise, Cuts, Rowwise
from vtx_scale.blocks.rules import Initial, Rule, Rules, fan_in, normal, ones, uniform, zeros
from vtx_scale.blocks.slots import SlotContext, drop_path, dropout
from vtx_scale.distributed.ranks import Ranks


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI's approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
}


def xavier(shares: int = 1) -> Initial:
    """Xavier-uniform (Glorot & Bengio 2010) of each of so many matrices that stand in one,
    row below row.
    """
    return uniform(lambda shape: math.sqrt(6 / (shape[0] / shares + fan_in(shape))))


NORMS: Rules = (Rule(r"(.*\.)?norm\w*\.weight", ones), Rule(r"(.*\.)?norm\w*\.bias", zeros))
# a block's projections as the JAX code of ViT has them, MLP biases N(0, 1e-6)
XAVIER: Rules = (
    *NORMS,
    Rule(r".*\.fc\d\.bias", normal(1e-6)),
    Rule(r".*\.bias", zeros),
    Rule(r".*\.qkv\.weight", xavier(3)),
    Rule(r".*\.kv\.weight", xavier(2)),
    Rule(r".*\.weight", xavier()),
)


class KVCache:
    """The keys and values of the tokens that a causal attention has seen:
    room for N of them, (B, H, N, D) each.
    """

    def __init__(self, room: int) -> None:
        self.room, self.length = room, 0
        self.k: Tensor | None = None
        self.v: Tensor | None = None

    def add(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the keys and values of n more tokens (B, H, n, D);
        all that were kept, (B, H, length, D).
        """
        if self.k is None or self.v is None:
            self.k, self.v = (x.new_empty(*x.shape[:2], self.room, x.shape[3]) for x in (k, v))
        now = slice(self.length, self.length + k.shape[2])
        self.k[:, :, now], self.v[:, :, now] = k, v
        self.length += k.shape[2]
        return self.k[:, :, : self.length], self.v[:, :, : self.length]


class Attention(nn.Module):
    """Multi-head self-attention with fused q, k, v (rows of `qkv` in this order).

    How many heads there are here is seen in what `qkv` gives: some, where ranks share them.
    """

    def __init__(self, width: int, heads: int, causal: bool = False, bias: bool = True) -> None:
        super().__init__()
        self.heads, self.causal, self.head_width = heads, causal, width // heads
        self.axis = Ranks()  # the ranks that share the heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.proj = nn.Linear(width, width, bias=bias)

    def split(self, x_BNC: Tensor) -> Tensor:
        """(3, B, H, N, D): q, k, v."""
        qkv: Tensor = self.qkv(x_BNC)
        return torch.unflatten(qkv, 2, (3, -1, self.head_width)).permute(2, 0, 3, 1, 4)

    def forward(self, x_BNC: Tensor, cache: KVCache | None = None) -> Tensor:
        """cache: x is one token, which sees those of before and itself."""
        q, k, v = self.split(x_BNC)
        if cache is not None:
            k, v = cache.add(k, v)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal and cache is None)
        out: Tensor = self.proj(y.transpose(1, 2).flatten(2))
        return out


class MLP(nn.Module):
    def __init__(
        self,
        width: int,
        hidden: int,
        activation: str,
        dropout: float = 0.0,
        name: str = "",
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden, bias=bias)
        self.fc2 = nn.Linear(hidden, width, bias=bias)
        self.activation, self.dropout, self.name = activation, dropout, name
        self.axis = Ranks()  # the ranks that share the hidden units

    def forward(self, x: Tensor, slots: SlotContext | None = None) -> Tensor:
        x = ACTIVATIONS[self.activation](self.fc1(x))
        x = dropout(x, self.dropout, slots, self.name, "fc1", axis=self.axis)
        return dropout(self.fc2(x), self.dropout, slots, self.name, "fc2")


def block_cuts(heads: int) -> Cuts:
    """Of a block with `attn`, an attention with fused q, k, v, and `mlp`."""
    return {
        "attn.qkv": Colwise(parts=3, heads=heads),
        "attn.proj": Rowwise(),
        "mlp.fc1": Colwise(),
        "mlp.fc2": Rowwise(),
    }


class Block(nn.Module):
    """x += attention(norm(x)); x += mlp(norm(x)).

    `name` tells its random numbers from another block's.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        activation: str,
        eps: float,
        causal: bool = False,
        *,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        name: str = "",
    ) -> None:
        super().__init__()
        self.dropout, self.drop_path, self.name = dropout, drop_path, name
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads, causal)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width, hidden, activation, dropout, name)

    def cuts(self) -> Cuts:
        """Where tensor parallelism cuts it."""
        return block_cuts(self.attn.heads)

    def forward(self, x: Tensor, slots: SlotContext | None = None, look: bool = False) -> Tensor:
        """(B, N, C) -> (B, N, C); `look`: instead (B, H, N, N),
        how the attention spreads over the tokens (rows sum to 1).
        """
        if look:
            q, k, _ = self.attn.split(self.norm1(x))
            share: Tensor = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
            # (H, B, N, N) of this rank's heads, then of all
            return self.attn.axis.gather_plain(share.softmax(-1).transpose(0, 1)).transpose(0, 1)
        y = dropout(self.attn(self.norm1(x)), self.dropout, slots, self.name, "attn")
        x = x + drop_path(y, self.drop_path, slots, self.name, "path1")
        return x + drop_path(
            self.mlp(self.norm2(x), slots), self.drop_path, slots, self.name, "path2"
        )
