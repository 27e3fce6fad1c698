"""The loss on validation samples, of objectives that say it a sample (masked patches,
iGPT, DALL-E).
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.distributed.ranks import Ranks

LOWER = ("loss",)


def loss(
    probes: dict[str, Callable[..., Any]],
    batches: Iterable[Batch],
    classes: list[str] | None,
    ranks: Ranks,
) -> dict[str, float]:
    """The mean in nats, and the number of samples.

    Raises UserError where the objective has no such probe, or no samples.
    """
    if "loss" not in probes:
        raise UserError(
            "loss needs an objective with a probe of that name (masked patches, iGPT, DALL-E): "
            "use another."
        )
    total = torch.zeros(2, dtype=torch.float64)
    for batch in batches:
        texts = {name: batch[name] for name in ("tokens", "length") if name in batch}
        seen = batch["codes"] if "codes" in batch else batch["image"]
        nats = probes["loss"](seen, batch.ids, **texts).double()
        total += torch.stack([nats[batch.valid].sum(), batch.valid.sum().double()])
    nats, samples = ranks.sum(total).tolist()
    if not samples:
        raise UserError(
            "loss found no valid validation sample: look at them with 'vtx data verify'."
        )
    return {"loss": nats / samples, "samples": int(samples)}
