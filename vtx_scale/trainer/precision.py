"""float32, bfloat16, float16 with a scaled loss, float64 for tests."""

import contextlib
from dataclasses import dataclass

import torch

from vtx_scale.specs.run import System


@dataclass
class Precision:
    """`weights` is the parameters' dtype, `compute` the matrix products' when it differs.

    float16 needs a scaled loss: halved when a step is not finite, doubled after 2,000 finite ones.
    """

    weights: torch.dtype
    compute: torch.dtype | None
    scale: float = 1.0
    good_steps: int = 0

    GROW = 2_000

    def cast(self, device: torch.device) -> contextlib.AbstractContextManager[object]:
        if self.compute is None:
            return contextlib.nullcontext()
        return torch.autocast(device.type, self.compute)

    def update(self, finite: bool) -> None:
        if self.compute is not torch.float16:
            return
        self.good_steps = self.good_steps + 1 if finite else 0
        if not finite:
            self.scale = max(1.0, self.scale / 2)
        elif self.good_steps % self.GROW == 0:
            self.scale *= 2


def precision_of(system: System, device: torch.device) -> Precision:
    """Automatic: bfloat16 on GPUs that have it, else float32."""
    name = system.precision
    if name == "auto":
        name = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if name == "fp64":
        return Precision(torch.float64, None)
    compute = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
    return Precision(torch.float32, compute, scale=2.0**16 if name == "fp16" else 1.0)
