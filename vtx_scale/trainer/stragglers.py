"""Which rank holds the others up: by what it computes between collectives, since whoever waits for
it there shows no more than that it waits. It is said once, and nothing is done about it.

Under strategies that gather parameters inside of the forward and backward pass (fsdp, hsdp, zero)
what is waited for there counts as computing, on all ranks alike: a slow one is seen only in so far
as it is slow outside of them.
"""

import socket
import statistics
from collections.abc import Callable

import torch

from vtx_scale.distributed.phases import PHASES
from vtx_scale.distributed.ranks import Ranks, gathered_json
from vtx_scale.trainer.output import Ledger

WINDOW = 50  # steps
RUNNING = 3  # windows, one after the other
RATIO = 1.2  # to the median of all ranks
LEAST = 0.005  # seconds a step that are worth a word


class Slowness:
    """Who was slow for how many windows running."""

    def __init__(self, world: int) -> None:
        self.running = [0] * world
        self.named: set[int] = set()

    def window(self, seconds: list[float]) -> dict[int, float]:
        """Rank -> ratio of those that are stragglers by now, each once. seconds: what each rank
        computes in a step of this window.
        """
        middle = statistics.median_low(seconds)
        for rank, own in enumerate(seconds):
            slow = own > RATIO * middle and own - middle > LEAST
            self.running[rank] = self.running[rank] + 1 if slow else 0
        found = [r for r, n in enumerate(self.running) if n >= RUNNING and r not in self.named]
        self.named |= set(found)
        return {rank: seconds[rank] / max(middle, 1e-9) for rank in found}


class Stragglers:
    """The steps of this rank, compared with those of the others once a window."""

    def __init__(
        self, ranks: Ranks, device: torch.device, ledger: Ledger, say: Callable[[str], None]
    ) -> None:
        self.ranks, self.device, self.ledger, self.say = ranks, device, ledger, say
        self.slowness = Slowness(ranks.world)
        self.rows: list[tuple[float, float, float]] = []
        self.before = PHASES.waited

    def begin(self) -> None:
        """A step begins."""
        self.before = PHASES.waited

    def add(self, step: int, seconds: float, data: float) -> None:
        """A step is done. seconds: that it took, `data` of them for its samples."""
        if self.ranks.world == 1:
            return
        waited = PHASES.waited - self.before
        self.rows.append((data, max(seconds - data - waited, 0.0), waited))
        if len(self.rows) < WINDOW:
            return
        mine = [statistics.median(column) for column in zip(*self.rows, strict=True)]
        self.rows = []
        row = torch.tensor([mine], dtype=torch.float64, device=self.device)
        all_of_them = self.ranks.gather_plain(row).tolist()  # (W, 3)
        if found := self.slowness.window([own[1] for own in all_of_them]):
            self._tell(step, found)

    def _tell(self, step: int, found: dict[int, float]) -> None:
        hosts = gathered_json(socket.gethostname(), self.ranks)
        for rank, ratio in found.items():
            self.say(
                f"rank {rank} on {hosts[rank]} holds the others up: it computes {ratio:.2f} times "
                f"as long as the median rank, in the last {RUNNING * WINDOW} steps"
            )
            if self.ranks.rank == 0:
                about = {"rank": rank, "host": hosts[rank], "ratio": round(ratio, 3)}
                self.ledger.write(kind="straggler", step=step, **about)
