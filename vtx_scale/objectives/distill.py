"""DeiT (Touvron et al. 2021, arXiv:2012.12877): a student learns from labels and from
a trained teacher.

n slots, V views, B = n V rows, K classes. A student with a distillation token says its labels with
the one head and the teacher's answers with the other; one without says both with the same. The
teacher sees the student's pictures, mixed and augmented, and lies frozen in the checkpoint, so that
a run goes on without the file that it came from.
Hard: cross-entropy to the teacher's first answer, without smoothing. Soft: temperature^2 times the
divergence from the teacher's, divided, as in the authors' code, by classes as well as by samples.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtx_scale.backbones import build_network
from vtx_scale.blocks.rules import under
from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.objectives.base import Context, Objective
from vtx_scale.objectives.image_reader import ImageReader
from vtx_scale.objectives.mixing import mix
from vtx_scale.objectives.pixels import normalised
from vtx_scale.objectives.probes import image_probes
from vtx_scale.objectives.supervised import flat, shared, softmax_loss
from vtx_scale.specs.run import Data
from vtx_scale.specs.supervised import DistillConfig


def soft_loss(student_BK: Tensor, teacher_BK: Tensor, temperature: float) -> Tensor:
    """(B,) tau^2 KL(teacher || student) / K."""
    student_log, teacher_log = ((x / temperature).log_softmax(-1) for x in (student_BK, teacher_BK))
    return (
        temperature**2
        * (teacher_log.exp() * (teacher_log - student_log)).sum(1)
        / student_BK.shape[1]
    )


class Distill(Objective):
    def __init__(self, spec: DistillConfig, context: Context) -> None:
        super().__init__(spec, context)
        self.spec: DistillConfig = spec
        self.net = build_network(spec.net)
        self.teacher = build_network(spec.teacher).requires_grad_(False)
        self.probes = image_probes(self, self.net, spec.pixels)
        teacher = under("teacher.", self.teacher.parameter_rules, group="")
        self.parameter_rules = (*under("net.", self.net.parameter_rules), *teacher)

    @staticmethod
    def reader(spec: DistillConfig, data: Data, train: bool) -> ImageReader:
        return ImageReader(
            spec.net.resolution, data, train, classes=spec.net.classes, masks=not train
        )

    def units(self) -> Iterable[nn.Module]:
        return [*self.net.units(), *self.teacher.units()]

    def prepare(self, batch: Batch, step: int) -> Batch:
        """Erasing and mixing, which pair neighbouring slots."""
        return mix(
            batch, self.context, self.spec.pixels, step, "label", next(self.parameters()).dtype
        )

    def forward(self, batch: Batch, step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        spec, image_B = self.spec, flat(batch["image"])
        V = len(image_B) // len(batch)
        dtype = next(self.parameters()).dtype
        with torch.no_grad():
            teacher_BK = self.teacher(normalised(image_B, spec.teacher_pixels, dtype))
        out = self.net(normalised(image_B, spec.pixels, dtype), self.context.slots(batch, step, V))
        wide = torch.promote_types(dtype, torch.float32)
        label_logits_BK, distill_logits_BK = (
            x.to(wide) for x in (out if spec.net.distilled else (out, out))
        )
        base_n = shared(
            lambda labels: softmax_loss(label_logits_BK, labels, spec.smoothing), batch, "label", V
        )
        if spec.kind == "hard":
            kd_B = F.cross_entropy(distill_logits_BK, teacher_BK.argmax(1), reduction="none")
        else:
            kd_B = soft_loss(distill_logits_BK, teacher_BK.to(wide), spec.temperature)
        kd_n = torch.unflatten(kd_B, 0, (-1, V)).mean(1)
        loss_n = (1 - spec.alpha) * base_n + spec.alpha * kd_n
        valid = batch.valid.sum().clamp(min=1)
        first = [
            (x.argmax(1).unflatten(0, (-1, V))[:, 0] == batch["label"]) & batch.valid
            for x in (label_logits_BK, teacher_BK)
        ]
        log = {
            "accuracy": first[0].sum() / valid,
            "teacher_accuracy": first[1].sum() / valid,
            "distillation": torch.where(batch.valid, kd_n, torch.zeros_like(kd_n)).sum().detach()
            / valid,
        }
        return torch.where(batch.valid, loss_n, torch.zeros_like(loss_n)).sum(), log
