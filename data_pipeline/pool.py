"""Where the same work is done on many units: beside this process's, or on the machines of a
cluster.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

U = TypeVar("U")
R = TypeVar("R")


class Pool(Protocol):
    """Processes that stand ready. Work and units are pickled; a unit may be done twice, where a
    process died or its machine was lost, so that work leaves the same behind each time.
    """

    def __call__(self, work: Callable[[U], R], units: Iterable[U]) -> Iterator[R]:
        """work(unit) of each unit, in their order.

        Raises what `work` raises, and UserError where a unit cannot be done.
        """
