"""The faults of machines, in a run folder: nodes/NAME.json, which outlives drivers and heads."""

import json
import re
import time
from typing import Any

from vtx_scale.cluster.policy import score
from vtx_scale.data_pipeline.objects import AnyPath, storage_of
from vtx_scale.trainer.output import PLACE

KEPT = 20  # faults of a machine
# seconds within which two faults of a machine have one cause: it takes its next actor along
TOGETHER = 10.0


class Faults:
    """What each machine has had, by its name."""

    def __init__(self, folder: AnyPath) -> None:
        """folder: of the run."""
        self.storage = storage_of(folder / "nodes")
        self.known: dict[str, list[dict[str, Any]]] = {}
        self.read: set[str] = set()  # those whose file is in `known`, and may be written

    def of(self, name: str) -> list[dict[str, Any]]:
        """The faults of a machine, the oldest first: {"time": unix seconds, "reason": words}."""
        if name not in self.known:
            self.known[name] = []
            self._read(name)
        return self.known[name]

    def _read(self, name: str) -> None:
        """Put what the file says before what is known; nothing where it cannot be read."""
        try:
            with self.storage.open(file_of(name)) as file:
                self.known[name] = [*json.loads(file.read(0, file.size)), *self.known[name]]
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError):
            return
        self.read.add(name)

    def score(self, name: str, now: float) -> float:
        """How bad a machine is. now: unix seconds."""
        return score([float(fault["time"]) for fault in self.of(name)], now)

    def reasons(self, name: str) -> str:
        """Why a machine is left out, for people."""
        found = self.of(name)
        return f"{len(found)} faults, the last: {found[-1]['reason']} (nodes/{file_of(name)})"

    def add(self, name: str, reason: str) -> None:
        """One more fault, now, unless it is of one that was just added. Where the file cannot be
        read or written it stays, and the fault counts in this process.
        """
        now, before = time.time(), self.of(name)
        if before and 0 <= now - float(before[-1]["time"]) < TOGETHER:
            return
        before.append({"time": now, "reason": reason})
        if name not in self.read:
            self._read(name)
        if name not in self.read:
            return
        del self.of(name)[:-KEPT]
        body = json.dumps(self.of(name), indent=1).encode()
        PLACE.attempt("ledger.jsonl", lambda: self.storage.put(file_of(name), body))


def file_of(name: str) -> str:
    """Where the faults of a machine lie in `nodes`."""
    return re.sub(r"[^\w.-]", "_", name) + ".json"
