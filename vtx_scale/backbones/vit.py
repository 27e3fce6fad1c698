"""Vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929), its hybrids,
and CLIP's and DeiT's variants of it.

B images, N tokens, C width. Pre-norm blocks, final norm, then `pool`: the class token, the mean
of the tokens after the norm, or attention pooling (MAP, Zhai et al. 2022). CLIP's
(arXiv:2103.00020): no bias in the patch embedding, a norm before the blocks, eps 1e-5. DeiT's
(Touvron et al. 2021): a distillation token behind the class token, with a head of its own.
Hybrid: the patches are cut from the feature map of a ResNet stem. Another resolution than the
spec's resamples the positions on the way (`blocks.position`).
"""

import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtx_scale.backbones import bit
from vtx_scale.blocks.attention import MLP, NORMS, XAVIER, Block, xavier
from vtx_scale.blocks.cuts import Colwise, Cuts, Rowwise
from vtx_scale.blocks.position import resampled, sincos2d
from vtx_scale.blocks.rules import Rule, Rules, fan_in, normal, under, uniform, zeros
from vtx_scale.blocks.slots import SlotContext, dropout
from vtx_scale.specs.vit import ViTConfig


class MapHead(nn.Module):
    """Attention pooling: a learned probe attends to the tokens; then y += mlp(norm(y))."""

    def __init__(self, width: int, heads: int, hidden: int, activation: str, eps: float) -> None:
        super().__init__()
        self.heads, self.head_width = heads, width // heads
        self.probe = nn.Parameter(torch.empty(1, 1, width))
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width, hidden, activation)

    def cuts(self) -> Cuts:
        """Where tensor parallelism cuts it."""
        return {
            "q": Colwise(heads=self.heads),
            "kv": Colwise(parts=2, heads=self.heads),
            "proj": Rowwise(),
            "mlp.fc1": Colwise(),
            "mlp.fc2": Rowwise(),
        }

    def forward(self, x_BNC: Tensor) -> Tensor:
        q = self.q(self.probe).unflatten(2, (-1, self.head_width)).transpose(1, 2)
        q = q.expand(x_BNC.shape[0], -1, -1, -1)
        k, v = self.kv(x_BNC).unflatten(2, (2, -1, self.head_width)).permute(2, 0, 3, 1, 4)
        y = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(1))
        out: Tensor = y + self.mlp(self.norm(y))
        return out


class ViT(nn.Module):
    """(B, 3, S, S) -> (B, C), or (B, classes) where the spec names classes.

    In training a distilled one gives (2, B, classes): by the class token and by the distillation
    token; else their mean.
    """

    def __init__(self, spec: ViTConfig) -> None:
        super().__init__()
        self.spec = spec
        C = spec.width
        self.stem = bit.BitStem(spec.stem) if spec.stem is not None else None
        self.cell = spec.cell
        self.grid = spec.resolution // self.cell
        self.patch = nn.Conv2d(
            self.stem.channels if self.stem is not None else 3,
            C,
            spec.patch,
            spec.patch,
            bias=spec.patch_bias,
        )
        self.cls_token = nn.Parameter(torch.empty(1, 1, C)) if spec.class_token else None
        self.dist_token = nn.Parameter(torch.empty(1, 1, C)) if spec.distilled else None
        self.extra = spec.extra  # tokens before the patches
        learned = spec.position_kind == "learned"
        self.positions = (
            nn.Parameter(torch.empty(1, self.grid**2 + self.extra, C)) if learned else None
        )
        self.norm_pre = nn.LayerNorm(C, eps=spec.eps) if spec.pre_norm else None
        self.blocks = nn.ModuleList(
            Block(
                C,
                spec.heads,
                spec.mlp,
                spec.activation,
                spec.eps,
                dropout=spec.dropout,
                drop_path=spec.drop_path * i / max(1, spec.depth - 1),
                name=f"blocks.{i}",
            )
            for i in range(spec.depth)
        )
        self.norm = nn.LayerNorm(C, eps=spec.eps)
        self.pool = (
            MapHead(C, spec.heads, spec.mlp, spec.activation, spec.eps)
            if spec.pool == "map"
            else None
        )
        self.rep = nn.Linear(C, C) if spec.representation else None
        self.head = nn.Linear(C, spec.classes) if spec.classes else None
        self.dist_head = nn.Linear(C, spec.classes) if spec.classes and spec.distilled else None
        self.parameter_rules = rules(spec)

    def units(self) -> Iterable[nn.Module]:
        """Blocks, and the classifiers, which at 30,000 classes are as large."""
        heads = [h for h in (self.pool, self.head, self.dist_head) if h is not None]
        return [*(self.stem.units() if self.stem is not None else []), *self.blocks, *heads]

    def embed(self, image: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, grid * grid, C): patches, without positions."""
        patches: Tensor = self.patch(self.stem(image) if self.stem is not None else image)
        return patches.flatten(2).transpose(1, 2)

    def place(self, x: Tensor) -> Tensor:
        """(B, grid * grid, C) patches -> (B, N, C): class and distillation tokens in front,
        positions added.
        """
        grid = math.isqrt(x.shape[1])
        front = [
            t.expand(x.shape[0], -1, -1).to(x.dtype)
            for t in (self.cls_token, self.dist_token)
            if t is not None
        ]
        if self.positions is None:
            return torch.cat([*front, x + sincos2d(grid, x.shape[2], x.device).to(x.dtype)], dim=1)
        if grid == self.grid:
            return torch.cat([*front, x], dim=1) + self.positions
        tokens, patches = self.positions[:, : self.extra], self.positions[:, self.extra :]
        return torch.cat([*front, x], dim=1) + torch.cat(
            [tokens, resampled(patches, self.grid, grid)], dim=1
        )

    def tokens(
        self,
        image: Tensor,
        slots: SlotContext | None = None,
        corrupt: Callable[[Tensor], Tensor] | None = None,
        keep: int = 1,
        leave: int = 0,
    ) -> list[Tensor]:
        """(B, 3, S, S) -> what the last `keep` blocks give, (B, N, C) each, before the final norm.

        corrupt: changes the patches (B, grid * grid, C) before positions are added. leave: so many
        blocks at the end are left out; where none is left, what enters the first.
        """
        x = self.embed(image)
        x = self.place(corrupt(x) if corrupt is not None else x)
        x = dropout(x, self.spec.dropout, slots, "positions")
        if self.norm_pre is not None:
            x = self.norm_pre(x)
        kept = []
        for block in self.blocks[: len(self.blocks) - leave]:
            x = block(x, slots)
            kept.append(x)
        return kept[-keep:] or [x]

    def pooled(self, x: Tensor) -> Tensor:
        """(B, N, C) before the final norm -> (B, C), or (2, B, C) of a distilled one."""
        if self.spec.distilled:
            both: Tensor = self.norm(x[:, :2])
            return both.transpose(0, 1)
        if self.spec.pool == "tok":
            y = self.norm(x[:, 0])
        else:
            y = self.norm(x)
            y = (
                self.pool(y)
                if self.pool is not None
                else y.mean(1)
                if self.spec.pool == "gap"
                else y
            )
        return torch.tanh(self.rep(y)) if self.rep is not None else y

    def features(self, image: Tensor, slots: SlotContext | None = None) -> Tensor:
        """(B, C): what a classifier would see; the class token's of a distilled one."""
        y = self.pooled(self.tokens(image, slots)[-1])
        return y[0] if self.spec.distilled else y

    def pyramid(self, image: Tensor, slots: SlotContext | None = None) -> list[Tensor]:
        """(B, 3, S, S) -> one map (B, C, S/cell, S/cell), of the patches after the final norm."""
        x = self.norm(self.tokens(image, slots)[-1])[:, self.extra :]
        return [x.transpose(1, 2).unflatten(2, (math.isqrt(x.shape[1]),) * 2)]

    def layer(self, name: str) -> int:
        """0 of what makes the tokens, then a number for each block,
        the norm's and the classifier's last.
        """
        part, _, rest = name.partition(".")
        if part == "blocks":
            return 1 + int(rest.partition(".")[0])
        first = ("stem", "patch", "cls_token", "dist_token", "positions", "norm_pre")
        return 0 if part in first else 1 + self.spec.depth

    def attention(self, image: Tensor) -> Tensor:
        """(B, H, grid, grid): how much the class token looks at each patch in the last block."""
        look: Tensor = self.blocks[-1](self.tokens(image, leave=1)[-1], look=True)
        row = look[:, :, 0, self.extra :]
        return torch.unflatten(row, 2, (math.isqrt(row.shape[2]),) * 2)

    def forward(self, image: Tensor, slots: SlotContext | None = None) -> Tensor:
        y = self.pooled(self.tokens(image, slots)[-1])
        if self.head is None:
            return y
        if self.dist_head is None:
            logits: Tensor = self.head(y)
            return logits
        both = torch.stack([self.head(y[0]), self.dist_head(y[1])])
        return both if slots is not None else both.mean(0)


def rules(spec: ViTConfig) -> Rules:
    """The published initial values, by `spec.init`;
    classifiers start anew under `init.head=new`.
    """
    table = {"xavier": xavier_rules, "truncated": truncated_rules, "clip": clip_rules}[spec.init]
    return (*under("stem.", bit.RULES), *NORMS, *table(spec))


def xavier_rules(spec: ViTConfig) -> Rules:
    """As the JAX code: xavier-uniform for each projection, MLP biases N(0, 1e-6), positions N(0,
    0.02), class token and classifier zero.

    Decay leaves what is no kernel alone.
    """
    return (
        Rule(r"patch\.weight", normal(lambda shape: fan_in(shape) ** -0.5)),
        Rule(r"patch\.bias", zeros),
        Rule(r"(cls|dist)_token", zeros, decay=False),
        Rule(r"positions", normal(0.02), decay=False),
        Rule(r"pool\.probe", uniform(math.sqrt(6 / (1 + spec.width))), decay=False),
        Rule(r"(dist_)?head\..*", zeros, group="head"),
        Rule(r"rep\.bias", zeros, group="head"),
        Rule(r"rep\.weight", xavier(), group="head"),
        *XAVIER,
    )


def truncated_rules(spec: ViTConfig) -> Rules:
    """As DeiT and DINO: N(0, 0.02), which they cut at 2, a hundred deviations away; biases zero;
    the patches as torch's default.
    """
    channels = 3 if spec.stem is None else 256 << (len(spec.stem) - 1) if spec.stem else 64
    return (
        Rule(r"patch\..*", uniform((channels * spec.patch**2) ** -0.5)),
        Rule(r"(cls|dist)_token|positions|pool\.probe", normal(0.02), decay=False),
        Rule(r"((dist_)?head|rep)\.bias", zeros, group="head"),
        Rule(r"((dist_)?head|rep)\.weight", normal(0.02), group="head"),
        Rule(r".*\.bias", zeros),
        Rule(r".*", normal(0.02)),
    )


def clip_rules(spec: ViTConfig) -> Rules:
    """As CLIP's image tower: torch's defaults; the class token is a vector there,
    which decay leaves alone.
    """
    return (
        Rule(r"cls_token", normal(spec.width**-0.5), decay=False),
        Rule(r"positions", normal(spec.width**-0.5)),
        Rule(r".*attn.*\.bias", zeros),
        Rule(r".*\.qkv\.weight", uniform(lambda shape: math.sqrt(6 / (shape[0] + shape[1])))),
        Rule(r".*\.fc1\.bias", uniform(1 / math.sqrt(spec.width))),
        Rule(r".*\.bias", uniform(1 / math.sqrt(spec.mlp))),
        Rule(r".*", uniform(lambda shape: 1 / math.sqrt(fan_in(shape)))),
    )
