"""An objective of one's own: by how many quarter turns was a picture rotated (Gidaris
et al. 2018, arXiv:1803.07728)?

    vtx train examples/objective.py:rotations --run runs/rotations
    vtx evaluate runs/rotations --with knn,linear

B slots, K = 4 turns. Any backbone with four classes will do. How a picture is turned is keyed by
its slot, so that every world and every resume turns it alike.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtx_scale.backbones import build_network
from vtx_scale.blocks.rules import under
from vtx_scale.data_pipeline import Batch
from vtx_scale.objectives.base import Context, Objective
from vtx_scale.objectives.image_reader import ImageReader
from vtx_scale.objectives.pixels import normalised
from vtx_scale.objectives.probes import image_probes
from vtx_scale.specs.network import Backbone
from vtx_scale.specs.objective import PICTURES, ObjectiveSpec
from vtx_scale.specs.run import Data, Evaluation, Optimizer, Run, System
from vtx_scale.specs.vit import ViTConfig

TURNS = 4


@dataclass(frozen=True, kw_only=True)
class RotationsConfig(ObjectiveSpec):
    build: ClassVar[str] = "objective:Rotations"
    # what its reader uses of `data`: anything else is refused
    data_fields: ClassVar[tuple[str, ...]] = PICTURES
    pixels = "half"

    net: Backbone

    def faults(self) -> list[str]:
        return (
            []
            if self.net.classes == TURNS
            else [f"net.classes={self.net.classes}: there are {TURNS} turns."]
        )


class Rotations(Objective):
    def __init__(self, spec: RotationsConfig, context: Context) -> None:
        super().__init__(spec, context)
        self.net = build_network(spec.net)
        self.parameter_rules = under("net.", self.net.parameter_rules)
        self.probes = image_probes(self, self.net, spec.pixels)

    @staticmethod
    def reader(spec: RotationsConfig, data: Data, train: bool) -> ImageReader:
        return ImageReader(spec.net.resolution, data, train)

    def units(self) -> Iterable[nn.Module]:
        return self.net.units()

    def forward(self, batch: Batch, step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        slots = self.context.slots(batch, step)
        turn_B = (slots.uniform("turn") * TURNS).long()
        x = normalised(batch["image"], self.spec.pixels, next(self.parameters()).dtype)
        # no value is looked at in Python, so that this runs on the meta device too, where memory is
        # estimated, and a GPU need not be waited for
        x_BK = torch.stack([torch.rot90(x, turn, (2, 3)) for turn in range(TURNS)], 1)
        x = x_BK[torch.arange(len(x), device=x.device), turn_B]
        logits_BK = self.net(x, slots)
        loss_B = F.cross_entropy(logits_BK, turn_B, reduction="none")
        right_B = (logits_BK.argmax(1) == turn_B) & batch.valid
        log: dict[str, Any] = {"accuracy": right_B.sum() / batch.valid.sum().clamp(min=1)}
        return torch.where(batch.valid, loss_B, 0.0).sum(), log


def rotations() -> Run:
    """A small ViT that tells how pictures are turned; toy shards."""
    net = ViTConfig(width=64, depth=3, heads=2, mlp=128, patch=8, resolution=32, classes=TURNS)
    return Run(
        objective=RotationsConfig(net=net),
        data=Data(shards="toy"),
        optim=Optimizer(lr=1e-3),
        steps=60,
        global_batch=32,
        system=System(workers=1),
        evaluate=(Evaluation(name="knn"),),
    )
