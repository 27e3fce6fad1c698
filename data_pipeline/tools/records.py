"""Results that are kept as they come, so that a command goes on where it ended."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vtx_scale.data_pipeline.pool import Pool
from vtx_scale.data_pipeline.storage import Storage
from vtx_scale.data_pipeline.tools.packing import read_json
from vtx_scale.data_pipeline.tools.parallel import each


@dataclass(frozen=True)
class Recorded:
    """Work whose results, JSON, are kept under a prefix by the numbers of the units."""

    work: Callable[[Any], Any]
    storage: Storage
    prefix: str

    def __call__(self, job: tuple[int, Any]) -> Any:
        """The result of unit (number, what `work` takes), of now or of an earlier run."""
        number, unit = job
        name = f"{self.prefix}{number:06d}.json"
        known = read_json(self.storage, name)
        if known is None:
            known = self.work(unit)
            self.storage.put(name, json.dumps(known).encode())
        return known


def recorded(
    work: Callable[[Any], Any],
    units: Sequence[Any],
    workers: int | Pool,
    beside: tuple[Storage, str] | None,
    what: str,
    about: Any,
) -> Iterator[Any]:
    """work(unit) of each unit, JSON, in order; what is known of an earlier run is not done again.

    beside, what: (storage, prefix) where results are kept until the last is taken, and under which
    name; None where they are not. about: all that decides the results, as JSON.
    """
    place = writable(beside)
    if place is None:
        yield from each(work, units, workers)
        return
    storage, prefix = place
    about = json.dumps([about, len(units)], sort_keys=True)
    mine = f"{prefix}{what}-{hashlib.sha256(about.encode()).hexdigest()[:16]}/"
    yield from each(Recorded(work, storage, mine), list(enumerate(units)), workers)
    for name in list(storage.list(mine)):
        storage.delete(name)


def writable(beside: tuple[Storage, str] | None) -> tuple[Storage, str] | None:
    """The place, None where nothing can be written there."""
    if beside is None:
        return None
    storage, prefix = beside
    try:
        storage.put(f"{prefix}writable", b"")
        storage.delete(f"{prefix}writable")
    except OSError:
        return None
    return beside
