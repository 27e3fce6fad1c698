"""How a picture comes back from its codes, and how many of the codes are used."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.distributed.ranks import Ranks

LOWER = ("rmse",)
CONSTANTS = ("flat_rmse",)
SHOWN = 8


def reconstruction(
    probes: dict[str, Callable[..., Any]],
    batches: Iterable[Batch],
    classes: list[str] | None,
    ranks: Ranks,
) -> dict[str, Any]:
    """Over all valid samples: rmse of pixels in 0..255, and flat_rmse of a picture of the same
    mean colour beside it; perplexity of the codes' frequencies and codes_used; and `picture`, some
    above their reconstructions.

    Raises UserError where the objective has no codes, or without samples.
    """
    if "codes" not in probes:
        raise UserError(
            "reconstruction needs an objective with codes (a dVAE): use another evaluator."
        )
    sums, used = torch.zeros(3, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)
    shown: list[torch.Tensor] = []
    for batch in batches:
        pixels, codes = batch["image"], probes["codes"](batch["image"]).long()
        back = probes["decode"](codes)
        keep = batch.valid
        real = pixels.double()
        error = (back.double() - real).square().mean((1, 2, 3))
        flat = (real - real.mean((1, 2), keepdim=True)).square().mean((1, 2, 3))
        sums += torch.stack([error[keep].sum(), flat[keep].sum(), keep.sum().double()])
        counts = torch.bincount(codes[keep].flatten())
        size = max(len(counts), len(used))
        used = torch.nn.functional.pad(used, (0, size - len(used))) + torch.nn.functional.pad(
            counts, (0, size - len(counts))
        )
        if len(shown) < SHOWN:
            shown += [
                torch.cat([pixels[i], back[i].round().to(torch.uint8)])
                for i in keep.nonzero().flatten().tolist()
            ]
    most = int(ranks.gather_plain(torch.tensor([len(used)])).max())
    used = ranks.sum(torch.nn.functional.pad(used, (0, most - len(used))))
    error, flat, count = ranks.sum(sums).tolist()
    if not count:
        raise UserError(
            "reconstruction found no valid validation sample: look at them with 'vtx data verify'."
        )
    share = used.double() / used.sum()
    scores: dict[str, Any] = {
        "rmse": (error / count) ** 0.5,
        "flat_rmse": (flat / count) ** 0.5,
        "samples": int(count),
        "perplexity": float(torch.special.entr(share).sum().exp()),
        "codes_used": int((used > 0).sum()),
    }
    return scores | ({"picture": torch.cat(shown[:SHOWN], dim=1).numpy()} if shown else {})
