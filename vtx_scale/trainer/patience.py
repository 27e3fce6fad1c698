"""Whether a number of an evaluator still gets better: `stop.patience`.

Pure: evaluations in, a verdict out. It stands in the manifest, so that a resume judges as if the
run had stayed.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Patience:
    """step: of the newest evaluation, 0 before the first. best: the best number so far, and at: the
    first step that had it. since: evaluations after that without a better one.
    """

    step: int = 0
    best: float | None = None
    at: int = 0
    since: int = 0

    def after(self, step: int, value: float, sign: int) -> "Patience":
        """Behind an evaluation; one that is known already changes nothing.

        value: one that is not finite is no better. sign: 1 where more is better, -1 where less is.
        """
        if step <= self.step:
            return self
        if math.isfinite(value) and (self.best is None or sign * value > sign * self.best):
            return Patience(step, value, step, 0)
        return replace(self, step=step, since=self.since + 1)

    def state(self) -> dict[str, Any]:
        """JSON."""
        return asdict(self)

    @staticmethod
    def of(state: dict[str, Any]) -> "Patience":
        """From a `state`; the one before the first evaluation from an empty one."""
        return Patience(**state)
