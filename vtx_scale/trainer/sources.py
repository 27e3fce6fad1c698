"""What becomes of each source of a mix: samples and epochs, and the limit of bad ones."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.data_pipeline.batches import Batches
from vtx_scale.trainer.control import BadLimit


class Sources:
    """S sources by their names; none where the samples are no mix.

    batches: of this rank. limit: the share of bad samples that each may have. samples: valid ones
    of each in the run's earlier starts. position: where this start begins.
    """

    def __init__(
        self, batches: Batches, limit: float, samples: Sequence[int], position: int
    ) -> None:
        self.order = batches.mix
        self.names = batches.names if self.order is not None else ()
        before = self.order.counts(position).tolist() if self.order is not None else []
        known = list(samples) if len(samples) == len(before) else [0] * len(before)
        self.samples: list[int] = known
        self.limits = [
            BadLimit(limit, valid, slots, source=name)
            for name, valid, slots in zip(self.names, known, before, strict=True)
        ]

    def counts(self, batch: Batch | None, device: torch.device) -> Tensor:
        """(2S,) float64: this rank's valid slots of each source, then its masked ones."""
        out = torch.zeros(2, len(self.names), dtype=torch.float64, device=device)
        if self.order is None or batch is None:
            return out.flatten()
        firsts = torch.from_numpy(self.order.firsts).to(batch.ids.device)
        source = torch.bucketize(batch.ids, firsts, right=True) - 1
        for row, slots in ((0, batch.valid), (1, ~batch.valid & (batch.ids >= 0))):
            out[row] = torch.bincount(source[slots], minlength=len(self.names))
        return out.flatten()

    def note(self, bad: dict[str, object]) -> None:
        """A ledger entry of a sample that is masked."""
        if self.limits:
            self.limits[int(str(bad.get("source", 0)))].add_reason(bad)

    def add(self, counts: list[float], last: bool) -> None:
        """Count a step's slots, of all ranks, as `counts` has them. last: of the run.

        Raises UserError where a source has too many bad samples, or none that can be used.
        """
        valid, masked = counts[: len(self.names)], counts[len(self.names) :]
        for i, limit in enumerate(self.limits):
            self.samples[i] += int(valid[i])
            limit.add(int(masked[i]), int(valid[i]), last)

    def metrics(self, position: int) -> dict[str, float]:
        """Valid samples of each source so far, and how often it was read through."""
        if self.order is None:
            return {}
        read = self.order.counts(position).tolist()
        out: dict[str, float] = {}
        for i, name in enumerate(self.names):
            out[f"samples/{name}"] = self.samples[i]
            out[f"epochs/{name}"] = read[i] / self.order.orders[i].n
        return out
