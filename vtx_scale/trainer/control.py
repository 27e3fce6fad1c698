"""Whether a step counts, and whether to leave."""

import contextlib
import threading
import time
from collections import Counter
from typing import Any

from vtx_scale.data_pipeline.errors import BLANK, UserError
from vtx_scale.data_pipeline.objects import AnyPath, ObjectPath
from vtx_scale.trainer.leave import Exists, requests

LOOK_EVERY = 5.0  # seconds between two looks at a stop file that is asked for over a network


def stop_file(folder: AnyPath) -> Exists:
    """What asks a run to leave by being there."""
    path = folder / "control" / "stop"
    return Looked(path) if isinstance(path, ObjectPath) else path


class Looked:
    """Whether an object is there, as a thread saw it that looks every few seconds for as long as it
    is asked: nobody waits for an answer.
    """

    def __init__(self, path: ObjectPath, every: float = LOOK_EVERY) -> None:
        """every: in seconds."""
        self.path, self.every = path, every
        self._seen, self._asked = False, 0.0
        self._thread: threading.Thread | None = None

    def exists(self) -> bool:
        """Whether it was there at the last look; once seen, it stays."""
        self._asked = time.monotonic()
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._look, daemon=True)
            self._thread.start()
        return self._seen

    def _look(self) -> None:
        while not self._seen and time.monotonic() - self._asked < 12 * self.every:
            with contextlib.suppress(OSError):  # who cannot ask is not asked to leave
                self._seen = self.path.is_file()
            time.sleep(self.every)


class Elsewhere(Exception):
    """Another rank says why the run ends. code: the exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(f"another rank ends the run with {code}")
        self.code = code


class NotFinite(Exception):
    """More steps in a row than allowed had a loss or a gradient that is not finite."""


class Control:
    """Requests to leave, as this rank hears them (rank 0 also `control/stop` in the run folder),
    and the count of skipped steps.
    """

    def __init__(self, folder: AnyPath, rank: int, skip_limit: int = 10) -> None:
        self.skip_limit = skip_limit
        self.skipped = 0
        self.taken = 0  # steps of this start that a roll-back has abandoned
        self.stop_file = stop_file(folder) if rank == 0 else None
        requests.stop_file = self.stop_file
        requests.announces = rank == 0

    def wants_to_leave(self) -> bool:
        """This rank's view; the loop makes it common."""
        return requests.asked or (self.stop_file is not None and self.stop_file.exists())

    def at_once(self) -> contextlib.AbstractContextManager[None]:
        """Where a request interrupts. Raises Leave."""
        return requests.at_once()

    def saving(self) -> contextlib.AbstractContextManager[None]:
        """Where a request has been followed and a checkpoint is written."""
        return requests.saving()

    def skip(self, step: int) -> None:
        """Count a skipped step. Raises NotFinite beyond the limit."""
        self.skipped += 1
        if self.skipped > self.skip_limit:
            raise NotFinite(
                f"{self.skipped} steps in a row up to step {step} were not finite: "
                "lower optim.lr or look at the samples that ledger.jsonl names."
            )


class BadLimit:
    """What could not be used: ends a run in which more than a share of the last 10,000 slots were
    masked for bad samples, or in which none could be used at all.

    Of fewer slots the limit holds from share * 10,000 bad ones on.
    """

    WINDOW = 10_000
    FIRST_STEPS, FIRST_SLOTS = 10, 64  # by then one slot must have been valid

    def __init__(
        self, share: float, valid: int = 0, slots: int = 0, steps: int = 0, source: str = ""
    ) -> None:
        """valid, slots, steps: of the run's earlier starts. source: of a mix, whose slots alone
        are counted.
        """
        self.share, self.source = share, f" of source {source}" if source else ""
        self.recent: list[tuple[int, int]] = []
        self.reasons: Counter[str] = Counter()
        self.details: Counter[str] = Counter()  # reasons, each with what it says of the sample
        self.members: Counter[str] = Counter()
        self.before = (valid, slots, steps)
        self.valid = self.slots = self.steps = self.masked = 0  # of this start

    def add_reason(self, bad: dict[str, Any]) -> None:
        """A ledger entry of this rank's."""
        detail = f" ({bad['detail']})" if bad.get("detail") else ""
        self.reasons[str(bad.get("reason"))] += 1
        self.details[f"{bad.get('reason')}{detail}"[: 80 if BLANK not in detail else None]] += 1
        if bad.get("members"):
            self.members[", ".join(bad["members"])] += 1

    def add(self, bad: int, valid: int, last: bool = False) -> None:
        """Count a step's masked and valid slots, of all ranks. last: of the run.

        Raises UserError beyond the limit.
        """
        self.recent.append((bad, valid + bad))
        while sum(s for _, s in self.recent) - self.recent[0][1] >= self.WINDOW:
            self.recent.pop(0)
        self.valid += valid
        self.slots += valid + bad
        self.steps += 1
        self.masked += bad
        masked, total = sum(b for b, _ in self.recent), sum(s for _, s in self.recent)
        now = (self.valid, self.slots, self.steps)
        used, slots, steps = (a + b for a, b in zip(self.before, now, strict=True))
        # a source of little weight has few slots in its first steps
        enough = slots >= self.FIRST_SLOTS or (
            not self.source and (steps >= self.FIRST_STEPS or last)
        )
        if not used and enough:
            if self.details and BLANK in (most := self.details.most_common(1)[0][0]):
                raise UserError(
                    f"None of the first {slots} samples{self.source} can be used: {most}; let both "
                    "agree."
                )
            raise UserError(
                f"None of the first {slots} samples{self.source} can be used{self.why()}: see "
                "that the recipe reads what the shards hold ('vtx data verify SHARDS' shows more)."
            )
        if masked > self.share * self.WINDOW:
            raise UserError(
                f"{masked} of the last {total} samples{self.source} were bad, more than "
                f"data.bad_limit={self.share}: ledger.jsonl names them{self.why()}; 'vtx data "
                "verify' finds those that cannot be read."
            )

    def why(self) -> str:
        """What this rank met most, and which members samples have where one was missing."""
        if not self.details:
            return ""
        members = (
            f"; samples have {max(self.members, key=self.members.__getitem__)}"
            if self.members
            else ""
        )
        return f", most often for {max(self.details, key=self.details.__getitem__)}{members}"
