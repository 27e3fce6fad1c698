"""The numbers of a run by step, as columns. Standard library alone."""

import math
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from typing import Any

NAN = math.nan


class Columns:
    """Rows of numbers, their steps ascending: a row takes back what was there of its step and
    beyond, as a run does that computes them again.

    steps: of the rows. values: name -> a number a row, NaN where the row has none. redone: rows
    that were taken back.
    """

    def __init__(self) -> None:
        self.steps: array[int] = array("q")
        self.values: dict[str, array[float]] = {}
        self.redone = 0

    def __len__(self) -> int:
        return len(self.steps)

    def add(self, row: dict[str, Any]) -> bool:
        """One row; whether it is one: with a whole `step` that is not below 0."""
        step = row.get("step")
        if type(step) is not int or not 0 <= step < 1 << 62:
            return False
        if self.steps and step <= self.steps[-1]:
            self.take_back(step)
        for name in row:
            if name not in self.values and name != "step" and number(row[name]) is not None:
                self.values[name] = array("d", [NAN]) * len(self.steps)
        self.steps.append(step)
        for name, column in self.values.items():
            value = number(row.get(name))
            column.append(NAN if value is None else value)
        return True

    def take_back(self, step: int) -> None:
        """Drop the rows of a step and beyond."""
        at = bisect_left(self.steps, step)
        self.redone += len(self.steps) - at
        del self.steps[at:]
        for column in self.values.values():
            del column[at:]

    def of(self, name: str) -> "array[float]":
        """A column; one that there is not is empty."""
        return self.values.get(name, array("d"))

    def last(self, name: str) -> float | None:
        """The newest number of a column, None where it has none."""
        column = self.of(name)
        return next((value for value in reversed(column) if value == value), None)

    def tail(self, name: str, rows: int) -> list[float]:
        """The finite numbers of the last rows."""
        return [value for value in self.of(name)[-rows:] if math.isfinite(value)]

    def at(self, name: str, step: int) -> float | None:
        """The number of a step, or of the last before it; None where there is none."""
        column, k = self.of(name), bisect_left(self.steps, step + 1) - 1
        return column[k] if column and k >= 0 and column[k] == column[k] else None

    def share(self, part: str, of: str, rows: int) -> float | None:
        """The sum of a column by that of another, over the last rows; None where there is none."""
        pairs = list(zip(self.of(part)[-rows:], self.of(of)[-rows:], strict=False))
        known = [(a, b) for a, b in pairs if math.isfinite(a) and math.isfinite(b)]
        total = sum(b for _, b in known)
        return sum(a for a, _ in known) / total if total > 0 else None


def number(value: Any) -> float | None:
    """A value of JSON as a number that can be drawn, None where it is none."""
    if type(value) is float or type(value) is int:
        return float(value) if abs(value) < 1e300 else None
    return None


def buckets(
    columns: Columns, name: str, count: int
) -> Iterator[tuple[int, int, float, float, float]]:
    """(first step, last step, lowest, mean, highest) of the finite numbers of a column, in at most
    `count` stretches of equal numbers of steps; one without a number is left out.
    """
    values, steps = columns.of(name), columns.steps
    if not len(values):
        return
    first, last = steps[0], steps[-1]
    width = max(1, -(-(last - first + 1) // count))
    at = 0
    while at < len(steps):
        end = bisect_left(steps, first + ((steps[at] - first) // width + 1) * width, at)
        part = [v for v in values[at:end] if v == v]
        if part:
            yield steps[at], steps[end - 1], min(part), sum(part) / len(part), max(part)
        at = end
