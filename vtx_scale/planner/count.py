"""Parameters and multiply-accumulates of a model, on the meta device: no value is computed, no memory taken.

Counted are the products of matrices, of convolutions and the two of attention, for one sample forward; norms,
activations and look-ups are free. Scaling ViT and open_clip print twice this number as FLOPs; DeiT, DINO and ResNet
print this number.
"""

import functools
import importlib
import json
from dataclasses import replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from vtx_scale.distributed.ranks import Ranks
from vtx_scale.objectives.base import Objective
from vtx_scale.planner.stored import FILE
from vtx_scale.specs.backbones import ViT
from vtx_scale.specs.clip import Clip, TextTower
from vtx_scale.specs.dalle import TextToCodes
from vtx_scale.specs.dvae import Codec
from vtx_scale.specs.igpt import PixelGPT
from vtx_scale.specs.models import published
from vtx_scale.specs.resnet import ClipResNet, ResNet
from vtx_scale.specs.run import Spec
from vtx_scale.specs.siglip import Siglip, SiglipText
from vtx_scale.specs.virtex import Virtex


def built(spec: Spec) -> Any:
    """What a spec names, on the meta device."""
    module, _, name = spec.build.partition(":")
    kind = getattr(importlib.import_module(module), name)
    with torch.device("meta"):
        return kind(spec, Ranks()) if issubclass(kind, Objective) else kind(spec)


def parameters(spec: Spec) -> int:
    """Trained numbers of an objective or a backbone."""
    return sum(p.numel() for p in built(spec).parameters())


@functools.cache
def macs(spec: Spec) -> int:
    """Multiply-accumulates of one sample forward, at the resolution and context of the spec."""
    if isinstance(spec, Clip):
        image = 0 if isinstance(spec.image, ClipResNet) else spec.image.width * spec.embed
        return macs(spec.image) + macs(spec.text) + image + spec.text.width * spec.embed
    if isinstance(spec, Siglip):
        return macs(spec.image) + macs(spec.text)
    if isinstance(spec, ClipResNet):
        return counted(built(spec), sample(spec)) + unasked(spec)
    if isinstance(spec, ViT | TextTower | SiglipText | PixelGPT) and spec.depth > 2:  # alike: the second tells of the rest
        one, two = (macs(replace(spec, depth=depth)) for depth in (1, 2))
        return one + (spec.depth - 1) * (two - one)
    if isinstance(spec, Virtex):
        text, side = built(spec).text, spec.net.resolution // 2 ** (len(spec.net.blocks) + 1)
        map_ = torch.empty(1, spec.net.width, side, side, device="meta")
        tokens, length = (torch.empty(1, n, dtype=torch.int64, device="meta") for n in (spec.context, 1))
        look = text.look(map_)
        ways = (False, True) if spec.directions == "both" else (False,)
        return (macs(spec.net) + counted(text.look, map_)
                + sum(counted(text, tokens, length.flatten(), look, back) for back in ways))
    if isinstance(spec, Codec):
        codec, codes = built(spec), torch.empty(1, spec.vocab, spec.grid, spec.grid, device="meta")
        return counted(codec.encoder, sample(spec)) + counted(codec.decoder, codes)
    if isinstance(spec, TextToCodes):
        tokens, codes = (torch.empty(1, n, dtype=torch.int64, device="meta") for n in (spec.context, spec.grid**2))
        return counted(built(spec), tokens, tokens.bool(), codes)
    return counted(built(spec), sample(spec))


def counted(model: Any, *inputs: Any) -> int:
    """Multiply-accumulates of `model(*inputs)`, by torch's counter."""
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:  # without gradients the counter trips
        model(*inputs)
    return counter.get_total_flops() // 2


def unasked(spec: ClipResNet) -> int:
    """What the published attention pool computes and throws away: every place asks there, and the mean alone here."""
    places, width = (spec.resolution // 32) ** 2, 32 * spec.width
    return places * (width * width + 2 * (places + 1) * width + width * spec.embed)


def sample(spec: Spec) -> torch.Tensor:
    """One sample as a backbone takes it."""
    if isinstance(spec, TextTower | SiglipText):
        return torch.empty(1, spec.context, dtype=torch.int64, device="meta")
    if isinstance(spec, PixelGPT):
        return torch.empty(1, spec.side**2, dtype=torch.int64, device="meta")
    if isinstance(spec, ViT | ResNet | ClipResNet | Codec):
        return torch.empty(1, 3, spec.resolution, spec.resolution, device="meta")
    raise TypeError(f"vtx_scale.planner.count knows no sample for {type(spec).__name__}")


def count_published() -> dict[str, dict[str, int]]:
    """What `stored.FILE` holds."""
    return {name: {"parameters": parameters(spec), "macs": macs(spec)} for name, (spec, _) in published().items()}


if __name__ == "__main__":
    FILE.write_text(json.dumps(count_published(), indent=1) + "\n")
