"""VirTex's textual head (Desai & Johnson 2021, arXiv:2006.06666, section 3.2):
transformer decoders over a picture's map.

B samples, T tokens, P places of the map, H width. Post-norm layers as torch's
TransformerDecoderLayer with GELU: causal attention over tokens, attention to the map, MLP of 4 H.
Words, positions, the map's projection and the output, which is tied to the words, are shared by
both directions; the layers are not.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtx_scale.blocks.cuts import Colwise, Cuts, Rowwise
from vtx_scale.blocks.rules import Rule, Rules, normal, ones, uniform, zeros
from vtx_scale.blocks.slots import WHOLE, SlotContext, dropout
from vtx_scale.distributed.ranks import Ranks
from vtx_scale.specs.virtex import VirtexConfig


class Attention(nn.Module):
    """Multi-head attention of x to a memory, x itself or the map;
    its weights are dropped out, too.
    """

    def __init__(self, width: int, heads: int, drop: float, name: str) -> None:
        super().__init__()
        self.heads, self.head_width, self.drop, self.name = heads, width // heads, drop, name
        self.axis = Ranks()  # the ranks that share the heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(
        self, x_BTH: Tensor, memory_BPH: Tensor, causal: bool, slots: SlotContext | None
    ) -> Tensor:
        T, D = x_BTH.shape[1], self.head_width
        q = self.q(x_BTH).unflatten(2, (-1, D)).transpose(1, 2)
        k, v = self.kv(memory_BPH).unflatten(2, (2, -1, D)).permute(2, 0, 3, 1, 4)
        score = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        if causal:
            later = torch.ones(T, T, dtype=torch.bool, device=x_BTH.device).triu(1)
            score = score.masked_fill(later, float("-inf"))
        share = score.softmax(-1)
        share = dropout(share, self.drop, slots, self.name, "weights", axis=self.axis, dim=-3)
        out: Tensor = self.proj((share @ v).transpose(1, 2).flatten(2))
        return out


class Layer(nn.Module):
    def __init__(self, spec: VirtexConfig, name: str) -> None:
        super().__init__()
        H = spec.width
        self.drop, self.name = spec.dropout, name
        self.axis = Ranks()  # the ranks that share the hidden units
        self.own = Attention(H, spec.heads, spec.dropout, f"{name}.own")
        self.map = Attention(H, spec.heads, spec.dropout, f"{name}.map")
        self.fc1, self.fc2 = nn.Linear(H, 4 * H), nn.Linear(4 * H, H)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(H), nn.LayerNorm(H), nn.LayerNorm(H)

    def cuts(self) -> Cuts:
        """Where tensor parallelism cuts it."""
        q, kv = Colwise(heads=self.own.heads), Colwise(parts=2, heads=self.own.heads)
        attentions = {
            f"{name}.{layer}": cut
            for name in ("own", "map")
            for layer, cut in (("q", q), ("kv", kv), ("proj", Rowwise()))
        }
        return {**attentions, "fc1": Colwise(), "fc2": Rowwise()}

    def forward(self, x: Tensor, map_BPH: Tensor, slots: SlotContext | None = None) -> Tensor:
        """Padding stands behind every token that it could be seen by."""

        def drop(y: Tensor, purpose: str, axis: Ranks = WHOLE) -> Tensor:
            return dropout(y, self.drop, slots, self.name, purpose, axis=axis)

        x = self.norm1(x + drop(self.own(x, x, True, slots), "drop1"))
        x = self.norm2(x + drop(self.map(x, map_BPH, False, slots), "drop2"))
        hidden = drop(F.gelu(self.fc1(x)), "fc1", self.axis)
        out: Tensor = self.norm3(x + drop(self.fc2(hidden), "drop3"))
        return out


class Captioner(nn.Module):
    """Tokens (B, T), of which `length` (B,) count, and a map (B, C, h, w) -> logits (B, T, V) of
    what follows each.
    """

    def __init__(self, spec: VirtexConfig) -> None:
        super().__init__()
        self.spec, H = spec, spec.width
        self.projection = nn.Linear(spec.net.widths[-1], H)
        self.words = nn.Embedding(spec.vocab, H)
        self.positions = nn.Embedding(spec.context, H)
        self.norm = nn.LayerNorm(H, eps=1e-8)
        self.forwards = self.layers("forwards")
        self.backwards = self.layers("backwards") if spec.directions == "both" else None
        self.bias = nn.Parameter(torch.empty(spec.vocab))
        self.parameter_rules = rules(spec)

    def layers(self, name: str) -> nn.ModuleList:
        return nn.ModuleList(Layer(self.spec, f"{name}.{i}") for i in range(self.spec.depth))

    def units(self) -> Iterable[nn.Module]:
        return [*self.forwards, *(self.backwards or [])]

    def project(self, map_BChw: Tensor) -> Tensor:
        """(B, h w, H)."""
        out: Tensor = self.projection(map_BChw.flatten(2).transpose(1, 2))
        return out

    def forward(
        self,
        tokens_BT: Tensor,
        length_B: Tensor,
        memory_BPH: Tensor,
        back: bool = False,
        slots: SlotContext | None = None,
    ) -> Tensor:
        T = tokens_BT.shape[1]
        place = torch.arange(T, device=tokens_BT.device)
        x = self.norm(self.words(tokens_BT) + self.positions(place))
        x = dropout(x, self.spec.dropout, slots, "back" if back else "forward", "embedding")
        x = x * (place < length_B[:, None])[..., None]
        layers = self.backwards if back else self.forwards
        assert layers is not None
        for layer in layers:
            x = layer(x, memory_BPH, slots)
        return F.linear(x, self.words.weight, self.bias)


# N(0, 0.02) for weights; biases as torch makes them: zero in attention, else uniform by what comes
# in. Decay leaves the norms and biases of the transformer alone, and nothing else: as the authors'
# pattern has it.
INNER = r"(forwards|backwards)\.\d+\."


def rules(spec: VirtexConfig) -> Rules:
    """The authors' initial values and decay."""
    return (
        Rule(rf"{INNER}norm\d\.weight|norm\.weight", ones, decay=False),
        Rule(rf"{INNER}norm\d\.bias|norm\.bias", zeros, decay=False),
        Rule(rf"{INNER}(own|map)\.(q|kv|proj)\.bias", zeros, decay=False),
        Rule(rf"{INNER}fc1\.bias", uniform(spec.width**-0.5), decay=False),
        Rule(rf"{INNER}fc2\.bias", uniform((4 * spec.width) ** -0.5), decay=False),
        Rule(r"bias", uniform(spec.width**-0.5), decay=True),
        Rule(r"projection\.bias", uniform(spec.net.widths[-1] ** -0.5), decay=True),
        Rule(r"(words|positions)\.weight", normal(0.02), decay=True, hidden=False),
        Rule(r".*", normal(0.02), decay=True),
    )
