"""Model FLOP utilisation: what the model needs, of what the device could do.

Counted are matrix products, convolutions and attention of the forward and the backward pass, two
operations a multiply-accumulate; what is computed again under recomputation does not count
(Chowdhery et al. 2022, PaLM, appendix B).
"""

import time
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vtx_scale.data_pipeline.batch import Batch

# Dense tensor-core peaks of the vendors' data sheets, in operations a second: bfloat16 and float16,
# float32 (no TF32).
PEAKS = {
    "H200": (989e12, 67e12),
    "H100": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "L40S": (362e12, 91.6e12),
    "L4": (121e12, 30.3e12),
    "A10G": (70e12, 35e12),
    "V100": (125e12, 15.7e12),
    "T4": (65e12, 8.1e12),
}


def training_flops(build: Callable[[], nn.Module], batch: Batch) -> float:
    """Operations of a training step for one slot, counted on the meta device;
    0 where the model cannot run there.

    build() makes the objective on the meta device, without micro-batches; `batch` is of at
    least two slots.
    """
    try:
        objective = build()
        with FlopCounterMode(display=False) as counter:
            loss, _ = objective(batch.to("meta"), 0)
            loss.backward()
        operations: int = counter.get_total_flops()
        return operations / len(batch)
    except Exception:
        # a stranger's objective may look at values, which the meta device lacks: no figure then
        return 0.0


def peak_flops(device: torch.device, compute: torch.dtype) -> float:
    """Operations a second: of a GPU by its data sheet (0 for one that is not listed),
    of a CPU as measured now.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        half, single = next((p for k, p in PEAKS.items() if k in name), (0.0, 0.0))
        return half if compute in (torch.bfloat16, torch.float16) else single
    n = 512
    x = torch.randn(n, n).to(compute)
    best = float("inf")
    for _ in range(8):
        began = time.perf_counter()
        torch.mm(x, x)
        best = min(best, time.perf_counter() - began)
    return 2 * n**3 / best
