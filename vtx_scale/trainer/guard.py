"""Whether a step is a spike, and whether there are so many that the run should go back.

Pure: numbers in, verdicts out. Every rank judges the same numbers, which are summed already, and so
comes to the same verdict; they stand in the manifest, so that a resume judges as if the run had
stayed.
"""

from dataclasses import dataclass
from statistics import median
from typing import Any

from vtx_scale.specs.run import Guard


@dataclass(frozen=True)
class Numbers:
    """Loss and gradient norm of a finished step (from 1), and the verdict."""

    step: int
    loss: float
    norm: float
    spike: bool


class Window:
    """The last `guard.window` steps, as far as their numbers were finite."""

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self.numbers: list[Numbers] = []

    def judge(self, step: int, loss: float, norm: float) -> bool:
        """Whether a step (from 1) with a finite loss and norm is a spike; it is remembered."""
        if not self.guard.factor:
            return False
        sound = [n for n in self.numbers if not n.spike]
        # of a run in which it is turned on late too: a median of one says nothing
        enough = len(sound) >= min(self.guard.after, self.guard.window) // 2
        spike = (
            step > self.guard.after
            and enough
            and (
                self.beyond(loss, [n.loss for n in sound])
                or self.beyond(norm, [n.norm for n in sound])
            )
        )
        self.numbers.append(Numbers(step, loss, norm, spike))
        self.numbers = [n for n in self.numbers if n.step > step - self.guard.window]
        return spike

    def beyond(self, value: float, sound: list[float]) -> bool:
        """Whether a value is too many times the median of the sound ones; never where there is
        none, or it is not above 0.
        """
        middle = median(sound) if sound else 0.0
        return middle > 0 and value > self.guard.factor * middle

    def spikes(self) -> list[Numbers]:
        """The spikes in the window."""
        return [n for n in self.numbers if n.spike]

    def over(self) -> bool:
        """Whether there are more spikes than the window may have."""
        return len(self.spikes()) > self.guard.many

    def state(self) -> list[list[Any]]:
        """JSON: step, loss, norm, spike of each."""
        return [[n.step, n.loss, n.norm, n.spike] for n in self.numbers]

    def load(self, state: list[list[Any]]) -> None:
        """Go on from a `state`."""
        self.numbers = [Numbers(*row) for row in state]
