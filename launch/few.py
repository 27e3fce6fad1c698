"""Lines for people, of which there may be one a sample: the first of each kind, and a count."""

from collections import Counter
from collections.abc import Callable

FEW = 5  # lines of a kind


class Few:
    """Takes lines by their kinds. say: takes those that people read."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.counts = say, Counter[str]()

    def __call__(self, kind: str, line: str) -> None:
        """The next line of a kind."""
        self.counts[kind] += 1
        if self.counts[kind] <= FEW:
            self.say(line)

    def end(self) -> None:
        """Say how many there were beyond those."""
        for kind, count in self.counts.items():
            if count > FEW:
                self.say(f"and {count - FEW:,} more: {kind}")
