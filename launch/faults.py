"""The faults of machines, in a run folder: nodes/NAME.json, which outlives drivers and heads."""

import json
import re
import time
from typing import Any

from vtx_scale.cluster.policy import score
from vtx_scale.data_pipeline.objects import AnyPath, storage_of
from vtx_scale.trainer.output import PLACE

KEPT = 20  # faults of a machine


class Faults:
    """What each machine has had, by its name."""

    def __init__(self, folder: AnyPath) -> None:
        """folder: of the run."""
        self.storage = storage_of(folder / "nodes")
        self.known: dict[str, list[dict[str, Any]]] = {}

    def of(self, name: str) -> list[dict[str, Any]]:
        """The faults of a machine, the oldest first: {"time": unix seconds, "reason": words}."""
        if name not in self.known:
            try:
                with self.storage.open(file_of(name)) as file:
                    self.known[name] = list(json.loads(file.read(0, file.size)))
            except (OSError, ValueError, TypeError):
                self.known[name] = []
        return self.known[name]

    def score(self, name: str, now: float) -> float:
        """How bad a machine is. now: unix seconds."""
        return score([float(fault["time"]) for fault in self.of(name)], now)

    def reasons(self, name: str) -> str:
        """Why a machine is left out, for people."""
        found = self.of(name)
        return f"{len(found)} faults, the last: {found[-1]['reason']} (nodes/{file_of(name)})"

    def add(self, name: str, reason: str) -> None:
        """One more fault, now. Where it cannot be written it still counts in this process."""
        self.of(name).append({"time": time.time(), "reason": reason})
        del self.of(name)[:-KEPT]
        body = json.dumps(self.of(name), indent=1).encode()
        PLACE.attempt("ledger.jsonl", lambda: self.storage.put(file_of(name), body))


def file_of(name: str) -> str:
    """Where the faults of a machine lie in `nodes`."""
    return re.sub(r"[^\w.-]", "_", name) + ".json"
