"""What evaluators and users may ask an objective whose network sees images."""

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vtx_scale.backbones import AttendingNetwork, ImageNetwork
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.objectives.base import Objective
from vtx_scale.objectives.pixels import normalised

Probe = Callable[[NDArray[Any] | Tensor], Tensor]


def pictures(pixels: NDArray[Any] | Tensor) -> Tensor:
    """Pixels that a probe was given. Raises UserError for another shape than (N, S, S, 3)."""
    images = torch.as_tensor(pixels)
    if images.ndim != 4 or images.shape[3] != 3 or images.shape[1] != images.shape[2]:
        raise UserError(
            "A probe takes square pictures, uint8 (N, S, S, 3), "
            f"and was given {tuple(images.shape)}."
        )
    return images


def captions(texts: Iterable[str]) -> Iterable[str]:
    """Captions that a probe was given. Raises UserError for one text, whose letters would each be a
    caption.
    """
    if isinstance(texts, str):
        raise UserError(f"A probe takes a list of captions, and was given one text: [{texts!r}].")
    return texts


def probe(objective: Objective, kind: str, function: Callable[[Tensor], Tensor]) -> Probe:
    """uint8 (N, S, S, 3) at the model's size -> `function` of the normalised (N, 3, S, S),
    float32 on the CPU.
    """

    def ask(pixels: NDArray[Any] | Tensor) -> Tensor:
        def inside(
            x: Tensor,
        ) -> (
            Tensor
        ):  # where a sharded objective has its parameters, in the type they are computed in
            return function(normalised(x, kind, next(objective.parameters()).dtype))

        return objective.context.run_probe(inside, pictures(pixels))

    return ask


def image_probes(objective: Objective, net: ImageNetwork, kind: str) -> dict[str, Probe]:
    """features (N, C): what a classifier sees; encode_image: the same at unit length; classify
    (N, K): logits, where there is a classifier; attention (N, H, grid, grid): how much the class
    token looks at each patch in the last block.
    """
    features = probe(objective, kind, net.features)
    probes = {
        "features": features,
        "encode_image": lambda pixels: F.normalize(features(pixels), dim=-1),
    }
    if net.spec.classes:
        probes["classify"] = probe(objective, kind, net)
    if net.spec.attends:
        probes["attention"] = probe(objective, kind, cast(AttendingNetwork, net).attention)
    return probes
