"""Whether a step counts, and whether to leave."""

import os
import signal
import threading
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

from vtx_scale.data_pipeline.errors import UserError


class NotFinite(Exception):
    """More steps in a row than allowed had a loss or a gradient that is not finite."""


class Control:
    """Requests to leave (signals, `control/stop` in the run folder) and the count
    of skipped steps.
    """

    def __init__(self, folder: Path, rank: int, skip_limit: int = 10) -> None:
        self.folder, self.rank, self.skip_limit = folder, rank, skip_limit
        self.asked = False
        self.skipped = 0
        self.stop_file = folder / "control" / "stop"

    def listen(self) -> None:
        """Take SIGTERM and Ctrl-C as the wish to save and leave; a second Ctrl-C leaves at once.

        Under Ray the worker is not in the main thread: there the stop file and the launcher speak.
        """
        if threading.current_thread() is not threading.main_thread():
            return

        def ask(number: int, _: FrameType | None) -> None:
            if self.asked and number == signal.SIGINT:
                os._exit(130)
            if not self.asked and self.rank == 0:
                os.write(
                    2, b"leaving after this step, with a checkpoint; Ctrl-C again ends at once\n"
                )
            self.asked = True

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, ask)

    def wants_to_leave(self) -> bool:
        """This rank's view; the loop makes it common."""
        return self.asked or (self.rank == 0 and self.stop_file.exists())

    def skip(self, step: int) -> None:
        """Count a skipped step. Raises NotFinite beyond the limit."""
        self.skipped += 1
        if self.skipped > self.skip_limit:
            raise NotFinite(
                f"{self.skipped} steps in a row up to step {step} were not finite: "
                "lower optim.lr or look at the samples that ledger.jsonl names."
            )


class BadLimit:
    """Stops the run when more than a share of the last 10,000 slots were masked for bad samples."""

    WINDOW = 10_000

    def __init__(self, share: float) -> None:
        self.share = share
        self.recent: list[tuple[int, int]] = []
        self.reasons: Counter[str] = Counter()

    def add_reason(self, bad: dict[str, Any]) -> None:
        """A ledger entry of this rank's."""
        detail = f" ({bad['detail']})" if bad.get("detail") else ""
        self.reasons[f"{bad.get('reason')}{detail}"[:80]] += 1

    def add(self, bad: int, slots: int) -> None:
        """Count a step's masked and all slots, of all ranks. Raises UserError beyond the limit."""
        self.recent.append((bad, slots))
        while sum(s for _, s in self.recent) - self.recent[0][1] >= self.WINDOW:
            self.recent.pop(0)
        masked, total = sum(b for b, _ in self.recent), sum(s for _, s in self.recent)
        if masked > self.share * self.WINDOW:
            raise UserError(
                f"{masked} of the last {total} samples were bad, more than "
                f"data.bad_limit={self.share}: ledger.jsonl names them{self.why()}; 'vtx data "
                "verify' finds those that cannot be read."
            )

    def why(self) -> str:
        """What this rank has seen most."""
        return (
            f", most often for {max(self.reasons, key=self.reasons.__getitem__)}"
            if self.reasons
            else ""
        )
