"""Where a trained run is opened and in which precision: what `vtx sample`, `vtx export` and
`vtx evaluate` take as key=value. Standard library alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.launch.override import set_key
from vtx_scale.specs.run import DeviceName, PrecisionName, System

KEYS = ("system.device", "system.precision", "system.world")


@dataclass(frozen=True)
class Reading:
    """device: "cpu", "cuda", or "auto" for a GPU where there is one. precision: of the products, as
    `system.precision` names it; None for the parameters' own type. world: ranks of this machine
    over which the model is sharded.
    """

    device: DeviceName = "cpu"
    precision: PrecisionName | None = None
    world: int | None = None


def reading_of(
    keys: Iterable[str], also: tuple[str, ...] = (), known: tuple[str, ...] = KEYS
) -> Reading:
    """What key=value strings say of it, the last of a key. also: keys that the caller reads
    itself, "data." for all that begin so. known: of KEYS, those that the caller heeds.

    Raises UserError for any other key, and for a value that is none.
    """
    values: dict[str, Any] = {}
    for change in keys:
        key, _, text = change.partition("=")
        if key in known:
            name = key.removeprefix("system.")
            values[name] = getattr(set_key(System(), [name], text, key), name)
        elif not any(key == k or (k.endswith(".") and key.startswith(k)) for k in also):
            allowed = [*known, *(f"{k}*" if k.endswith(".") else k for k in also)]
            raise UserError(
                f"{key}: a run is taken as it was trained; "
                f"{', '.join(allowed[:-1])} and {allowed[-1]} can be set."
            )
    world = values.get("world")
    if isinstance(world, str):
        raise UserError(f"system.world={world}: give one number here.")
    if world is not None and world < 1:
        raise UserError(f"system.world={world}: give 1 or more, or leave it out.")
    return Reading(**values)
