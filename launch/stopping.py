"""A run that ends before its last step, where an evaluator's number does not get better."""

import math
from typing import Any

from vtx_scale.data_pipeline.objects import AnyPath
from vtx_scale.distributed.ranks import gathered_json
from vtx_scale.launch.retention import direction
from vtx_scale.specs.run import Run
from vtx_scale.strategies.base import Base
from vtx_scale.trainer.lines import written
from vtx_scale.trainer.output import Ledger, say, why
from vtx_scale.trainer.patience import Patience


class Stopping:
    """Of one start, the same on every rank: what rank 0 hears and reads counts. Never where
    `stop.patience` is 0.
    """

    def __init__(self, run: Run, folder: AnyPath, strategy: Base) -> None:
        """Raises UserError where the evaluator does not say which way its number is better."""
        self.stop, self.folder, self.ranks = run.stop, folder, strategy.all
        self.name, _, self.number = run.stop.number.rpartition("/")
        key = "stop.number"
        self.sign = direction(self.name, self.number, key) if run.stop.patience else 0
        self.patience = Patience()

    @property
    def over(self) -> bool:
        """Whether the run ends here."""
        return 0 < self.stop.patience <= self.patience.since

    def load(self, manifest: dict[str, Any], step: int) -> None:
        """Go on behind `step` finished steps: from what a checkpoint says, and what was evaluated
        between its save and the end of that start.
        """
        self.patience = Patience.of(manifest.get("stop", {}))
        if not self.stop.patience:
            return
        rows: list[dict[str, Any]] = []
        if self.ranks.rank == 0:
            try:
                rows = [row for row in written(self.folder / "evaluations.jsonl") if self._of(row)]
            except OSError as e:  # those of this step are evaluated again
                say(f"evaluations.jsonl cannot be read ({why(e)}): stop.patience goes on without")
        for row in rows:
            if row["step"] <= step:
                self._add(row["step"], row[self.number])
        self.patience = Patience.of(gathered_json(self.patience.state(), self.ranks)[0])

    def hear(self, name: str, scores: dict[str, Any], step: int) -> None:
        """What an evaluator has said behind a step, on every rank."""
        if self.stop.patience and name == self.name and self.number in scores:
            self._add(step, scores[self.number])
            self.patience = Patience.of(gathered_json(self.patience.state(), self.ranks)[0])

    def tell(self, step: int) -> str:
        """Why the run ends here, for people; in the ledger too, once."""
        patience = self.patience
        best = "was never a number" if patience.best is None else f"is {patience.best:.4g}"
        since = f" since step {patience.at}" if patience.at else ""
        entry = {"kind": "stopped", "step": step, "number": self.stop.number}
        count = patience.since
        worse = "1 evaluation was" if count == 1 else f"{count} evaluations were"
        reason = f"{self.stop.number} {best}{since}, and {worse} no better"
        if self.ranks.rank == 0:
            try:
                there = written(self.folder / "ledger.jsonl")
            except OSError:
                there = []
            if not any(row.get("kind") == "stopped" and row.get("step") == step for row in there):
                Ledger(self.folder).write(**entry, reason=reason)
        return reason

    def _of(self, row: dict[str, Any]) -> bool:
        """Whether a line of evaluations.jsonl has the number."""
        numbered = isinstance(row.get("step"), int) and self.number in row
        return numbered and row.get("name") == self.name

    def _add(self, step: int, value: Any) -> None:
        try:
            number = float(value)
        except (TypeError, ValueError):  # null in JSON; a stranger's evaluator says anything
            number = math.nan
        self.patience = self.patience.after(step, number, self.sign)
