"""The state of the data: where the order goes on, and of which order that is."""

from collections.abc import Sequence
from typing import Any

from vtx_scale.data_pipeline.errors import UserError

# (first position, positions of each source in a block) of a stretch with the same weights
Segment = tuple[int, tuple[int, ...]]


def state_of(position: int, fingerprint: str, segments: Sequence[Segment] = ()) -> dict[str, Any]:
    """The state at a position, JSON. segments: (first position, weights) of a mix."""
    state: dict[str, Any] = {"version": 1, "position": position, "fingerprint": fingerprint}
    if segments:
        state["segments"] = [[start, list(weights)] for start, weights in segments]
    return state


def checked(state: dict[str, Any], fingerprint: str, segments: Sequence[Segment] = ()) -> int:
    """The position of a state.

    Raises UserError, naming what differs, for the state of another data set or order, and for one
    before whose position a mix had other segments than these.
    """
    for name, now in (("version", 1), ("fingerprint", fingerprint)):
        if state.get(name) != now:
            raise UserError(
                f"This state of the data has {name} {state.get(name)} and the loader has {now}: "
                "give the shards, seed, lanes and window that the state was made with."
            )
    position = state.get("position")
    if not isinstance(position, int) or isinstance(position, bool) or position < 0:
        raise UserError(
            f"This state of the data has position {position!r}: a number of samples is wanted."
        )
    known, mine = begun(segments_of(state), position), begun(segments, position)
    if known != mine:
        raise UserError(
            f"This state of the data has the segments {known} before position {position} and the "
            f"loader has {mine}: give the weights that the state was made with."
        )
    return position


def segments_of(state: dict[str, Any]) -> list[Segment]:
    """(first position, weights) of a state of a mix; none of another."""
    return [(int(start), tuple(map(int, weights))) for start, weights in state.get("segments", [])]


def begun(segments: Sequence[Segment], position: int) -> list[Segment]:
    """The segments that begin before a position."""
    return [(start, weights) for start, weights in segments if start < position]
