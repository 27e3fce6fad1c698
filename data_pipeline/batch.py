"""A rank's share of one global batch."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """n slots.

    `data` holds tensors with n rows, by the names that the reader gives them; `batch[name]` is one
    of them, `name in batch` whether it is there, `len(batch)` n. A slot that is not `valid` (n,)
    bool holds zeros and weighs nothing.

    ids (n,) int64: sample numbers, of a mix through all its sources, -1 for padding. epoch, slot
    (n,) int64: slot is the number in the global batch, -1 for padding. bad: ledger entries of the
    slots that were masked, and of what was read twice. notes: how often something was let pass that
    deserves a count (an animated picture, a text that is no UTF-8).
    """

    data: dict[str, Tensor]
    valid: Tensor
    ids: Tensor
    epoch: Tensor
    slot: Tensor
    bad: tuple[dict[str, Any], ...] = ()
    notes: dict[str, int] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        return self.data[name]

    def __contains__(self, name: str) -> bool:
        return name in self.data

    def __len__(self) -> int:
        return len(self.valid)

    def _map(self, f: Callable[[Tensor], Tensor]) -> "Batch":
        return replace(
            self,
            data={k: f(v) for k, v in self.data.items()},
            valid=f(self.valid),
            ids=f(self.ids),
            epoch=f(self.epoch),
            slot=f(self.slot),
        )

    def to(self, device: torch.device | str) -> "Batch":
        """The same on a device; from pinned memory the copy goes on while this returns."""
        return self._map(lambda t: t.to(device, non_blocking=True))

    def split(self, micro: int | None) -> list["Batch"]:
        """Consecutive parts of at most `micro` slots; the whole when None.

        `bad` and `notes` go with each part.
        """
        if micro is None or micro >= len(self):
            return [self]
        return [self.part(a, a + micro) for a in range(0, len(self), micro)]

    def part(self, a: int, b: int) -> "Batch":
        """Slots a .. b-1 of these, as views; `bad` and `notes` stay whole."""
        return self._map(lambda t: t[a:b])
