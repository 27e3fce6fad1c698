"""Vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929), and CLIP's variant of it (arXiv:2103.00020).

B images, N tokens, C width. Pre-norm blocks, final norm, then `pool`: the class token, the mean of the tokens
after the norm, or attention pooling (MAP, Zhai et al. 2022). CLIP's: no bias in the patch embedding, a norm before
the blocks, eps 1e-5.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtx_scale.blocks.attention import MLP, Block
from vtx_scale.specs.backbones import ViT as Spec


class MapHead(nn.Module):
    """Attention pooling: a learned probe attends to the tokens; then y += mlp(norm(y))."""

    def __init__(self, width: int, heads: int, hidden: int, activation: str, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.probe = nn.Parameter(torch.empty(1, 1, width))
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width, hidden, activation)

    def forward(self, x_BNC: Tensor) -> Tensor:
        B, N, C = x_BNC.shape
        q = self.q(self.probe).view(1, 1, self.heads, C // self.heads).transpose(1, 2).expand(B, -1, -1, -1)
        k, v = self.kv(x_BNC).view(B, N, 2, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        y = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, C))
        return y + self.mlp(self.norm(y))


class ViT(nn.Module):
    """(B, 3, S, S) -> (B, C), or (B, classes) where the spec names classes."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        C, grid = spec.width, spec.resolution // spec.patch
        self.patch = nn.Conv2d(3, C, spec.patch, spec.patch, bias=spec.patch_bias)
        self.cls_token = nn.Parameter(torch.empty(1, 1, C)) if spec.class_token else None
        self.positions = nn.Parameter(torch.empty(1, grid * grid + spec.class_token, C))
        self.norm_pre = nn.LayerNorm(C, eps=spec.eps) if spec.pre_norm else None
        self.blocks = nn.ModuleList(Block(C, spec.heads, spec.mlp, spec.activation, spec.eps) for _ in range(spec.depth))
        self.norm = nn.LayerNorm(C, eps=spec.eps)
        self.pool = MapHead(C, spec.heads, spec.mlp, spec.activation, spec.eps) if spec.pool == "map" else None
        self.head = nn.Linear(C, spec.classes) if spec.classes else None

    def tokens(self, image: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, N, C), class token first, after the blocks and before the final norm."""
        x = self.patch(image).flatten(2).transpose(1, 2)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1).to(x.dtype), x], dim=1)
        x = x + self.positions
        if self.norm_pre is not None:
            x = self.norm_pre(x)
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, image: Tensor) -> Tensor:
        x = self.tokens(image)
        if self.spec.pool == "tok":
            y = self.norm(x[:, 0])
        elif self.pool is not None:
            y = self.pool(self.norm(x))
        else:
            y = self.norm(x)
            y = y.mean(1) if self.spec.pool == "gap" else y
        return self.head(y) if self.head is not None else y
