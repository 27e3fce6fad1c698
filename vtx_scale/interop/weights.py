"""Export and import for any objective: which network it holds says which tables do it."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.distributed.ranks import Ranks
from vtx_scale.interop.clip import FILES, export_clip, import_clip, spec_json
from vtx_scale.interop.dvae import export_codec, import_codec
from vtx_scale.interop.files import read_weights, write_folder
from vtx_scale.interop.igpt import export_igpt, import_igpt
from vtx_scale.interop.resnet import export_resnet, import_resnet
from vtx_scale.interop.siglip import export_siglip, import_siglip
from vtx_scale.interop.vit import export_vit, import_vit
from vtx_scale.specs.backbones import ViT
from vtx_scale.specs.clip import Clip
from vtx_scale.specs.dvae import Codec
from vtx_scale.specs.igpt import Igpt
from vtx_scale.specs.imports import import_object
from vtx_scale.specs.resnet import ClipResNet, ResNet
from vtx_scale.specs.run import Spec
from vtx_scale.specs.siglip import Siglip

HEADS = ("head.", "dist_head.", "rep.")


def export(objective: Any, to: str, out: Path, centre: float = 1.0, bicubic: bool = True,
           head: bool = True) -> list[Path]:
    """Write what an objective has learned where `to`, another library or "safetensors", opens it; the files.

    CLIP, SigLIP and iGPT go as a whole. Any other objective says by `exported()` what leaves: the spec of its network, the
    network's state by its own names, mean and deviation of the pixels. centre: the share of the short side that an
    evaluation looks at; bicubic: how it resizes. head: with the
    classifier, where the network has one. Raises UserError where there is no such export.
    """
    spec = objective.spec
    state = {k: v.detach() for k, v in objective.state_dict().items()}
    if isinstance(spec, Clip):
        return export_clip(spec, state, to, out)
    if isinstance(spec, Siglip):
        return export_siglip(spec, state, to, out)
    if isinstance(spec, Igpt):
        return export_igpt(spec, state, to, out)
    if not hasattr(objective, "exported"):
        raise UserError(f"{type(spec).__name__} cannot be exported: its objective has no exported(), which says what leaves.")
    network, state, mean, std = objective.exported()
    state = {k: v.detach() for k, v in state.items()}
    if not head and isinstance(network, ViT | ResNet):
        network = replace(network, classes=0)
        if isinstance(network, ViT):
            network = replace(network, representation=False)
        state = {k: v for k, v in state.items() if not k.startswith(HEADS)}
    if to == "safetensors":
        return write_folder(out, {"model.safetensors": state}, {"spec.json": spec_json(network)})
    if isinstance(network, ViT):
        return export_vit(network, state, to, out, mean, std, centre, bicubic)
    if isinstance(network, ResNet):
        return export_resnet(network, state, to, out, mean, std, centre, bicubic)
    if isinstance(network, Codec):
        return export_codec(network, state, to, out)
    raise UserError(f"{type(network).__name__} has no export to {to}: export to safetensors instead.")


def import_weights(path: Path, spec: Spec) -> dict[str, Tensor]:
    """Weights of exported or foreign files under the names of the objective that `spec` configures.

    A network's weights stand at every part of the objective that is this network, a student's and its teacher's;
    without a known network the names are the files'. Raises UserError where there are no such weights.
    """
    if isinstance(spec, Clip):
        return import_clip(path)
    if isinstance(spec, Siglip):
        return import_siglip(path)
    if isinstance(spec, Igpt):
        return import_igpt(path)
    network = getattr(spec, "net", None)
    if not isinstance(network, ViT | ResNet | Codec):
        return read_weights(path, FILES)  # names of its own, which are compared where they are taken
    state = import_network(path, network)
    with torch.device("meta"):
        objective = import_object(spec.build)(spec, Ranks())
    places = [name for name, part in objective.named_modules() if calm(getattr(part, "spec", None)) == calm(network)]
    return {f"{place}.{k}": v for place in places for k, v in state.items()}


def calm(network: Any) -> Any:
    """A network's spec without what its weights do not know of."""
    return replace(network, drop_path=0.0, dropout=0.0) if isinstance(network, ViT) else network


def import_network(path: Path, network: Spec) -> dict[str, Tensor]:
    """Weights of a ViT, a ResNet or a codec, of exported or foreign files, under the network's own names. Raises UserError."""
    if isinstance(network, ViT):
        return import_vit(path)
    if isinstance(network, Codec):
        return import_codec(path, network)
    state = read_weights(path, FILES)
    return state if "conv.weight" in state else import_resnet(path)


def lattice(spec: Spec, name: str) -> tuple[int, int] | None:
    """(grid, tokens before the patches) of the positions `name` in the objective of `spec`; None for what is no image's."""
    for part in reversed(name.split(".")[:-1]):
        net = getattr(spec, part, None)
        if isinstance(net, ViT):
            stride = net.patch * (2 ** (max(1, len(net.stem)) + 1) if net.stem is not None else 1)
            return net.resolution // stride, int(net.class_token) + int(net.distilled)
        if isinstance(net, ClipResNet):
            return net.resolution // 32, 1  # of its pool, whose first entry is the mean's
    return None


def resize_positions(state: dict[str, Tensor], spec: Spec) -> dict[str, Tensor]:
    """`state` with every image's positions (1, N, C) at the resolution of `spec`; `state` itself where they are already.

    Bicubic on the grid, antialiased, as timm and open_clip do when they load; tokens before the patches keep their own
    entries. A name "a.net.positions" belongs to the network `spec.net`.
    """
    made: dict[str, Tensor] = {}
    for name, have in state.items():
        if not name.endswith("positions") or have.ndim != 3 or (at := lattice(spec, name)) is None:
            continue
        grid, extra = at
        old = math.isqrt(have.shape[1] - extra)
        if old == grid or old * old + extra != have.shape[1]:
            continue
        square = have[:, extra:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
        square = F.interpolate(square, (grid, grid), mode="bicubic", align_corners=False, antialias=True)
        made[name] = torch.cat([have[:, :extra], square.flatten(2).transpose(1, 2).to(have.dtype)], dim=1)
    return {**state, **made} if made else state
