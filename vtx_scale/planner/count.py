"""Parameters and multiply-accumulates of a model, on the meta device:
no value is computed, no memory taken.

Counted are the products of matrices, of convolutions and the two of attention, for one sample
forward; norms, activations and look-ups are free. Scaling ViT and open_clip print twice this number
as FLOPs; DeiT, DINO and ResNet print this number.
"""

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vtx_scale.objectives.base import Context, Objective
from vtx_scale.planner.stored import FILE
from vtx_scale.specs.imports import import_object
from vtx_scale.specs.models import published
from vtx_scale.specs.network import Network
from vtx_scale.specs.spec import Spec


def built(spec: Spec) -> nn.Module:
    """What a spec names, on the meta device."""
    kind = import_object(type(spec).build)
    with torch.device("meta"):
        module: nn.Module = kind(spec, Context()) if issubclass(kind, Objective) else kind(spec)
    return module


@functools.cache
def parameters(spec: Spec) -> int:
    """Trained numbers of an objective or a backbone."""
    return sum(p.numel() for p in built(spec).parameters())


@functools.cache
def macs(spec: Spec) -> int:
    """Multiply-accumulates of one sample forward, at the resolution and context of the spec.

    A class with a static `macs(spec, count)` says them itself; of a network whose blocks are alike
    the second tells of the rest.
    """
    own = getattr(import_object(type(spec).build), "macs", None)
    if own is not None:
        with torch.device("meta"):
            return int(own(spec, count))
    depth = getattr(spec, "depth", 0)
    if getattr(spec, "alike", False) and depth > 2:
        one, two = (macs(replace(spec, **{"depth": n})) for n in (1, 2))
        return one + (depth - 1) * (two - one)
    return counted(built(spec), *sample(cast(Network, spec)))


def count(target: Spec | Callable[..., object], *inputs: object) -> int:
    """Of a spec, or of a module on the meta device with these inputs."""
    if inputs:
        return counted(cast(Callable[..., object], target), *inputs)
    return macs(cast(Spec, target))


def counted(model: Callable[..., object], *inputs: object) -> int:
    """Multiply-accumulates of `model(*inputs)`, by torch's counter."""
    # without gradients the counter trips
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        model(*inputs)
    operations: int = counter.get_total_flops()
    return operations // 2


def sample(spec: Network) -> list[torch.Tensor]:
    """One sample as a network takes it, on the meta device."""
    dtypes = {"pixels": torch.get_default_dtype(), "ids": torch.int64, "flags": torch.bool}
    return [
        torch.empty(1, *shape, dtype=dtypes[kind], device="meta") for shape, kind in spec.inputs()
    ]


def count_published() -> dict[str, dict[str, int]]:
    """What `stored.FILE` holds."""
    return {
        name: {"parameters": parameters(spec), "macs": macs(spec)}
        for name, (spec, _) in published().items()
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(count_published(), indent=1, sort_keys=True) + "\n")
