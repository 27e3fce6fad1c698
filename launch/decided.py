"""The decisions of a run as they are read: numbered objects in its folder, made once, never
dropped, and replayed at every start. No torch.

`decisions/00000001.json` of the kind "roll_back" says: behind step `step` the run goes on at
`position` of the order. Of the kind "amend" it says: from step `step` on, as metrics.jsonl counts
them, the field `key` is `value`. What was computed beyond without knowing of it is abandoned. A
manifest lists the decisions that its run knew; a checkpoint beyond that does not list one belongs
to what was abandoned. A person may write one by hand: the next start follows it.
"""

import json
import re
from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import Any

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.objects import AnyPath, storage_of

NAME = re.compile(r"(\d{8})\.json")


@dataclass(frozen=True)
class Decision:
    """A roll-back: behind `step` the run goes on at `position`. Where there is a `key`, an
    amendment: from `step` on it is `value`, as it was typed. number: from 1.
    """

    number: int
    step: int
    position: int = 0
    key: str = ""
    value: str = ""

    @property
    def name(self) -> str:
        """Of its object, without the ending."""
        return f"{self.number:08d}"

    @property
    def kind(self) -> str:
        """As its object says it."""
        return "amend" if self.key else "roll_back"

    @property
    def behind(self) -> int:
        """The finished steps that it leaves as they are."""
        return self.step - 1 if self.key else self.step


def read(folder: AnyPath, but: Container[str] = ()) -> list[Decision]:
    """The decisions of a run, in the order in which they were made; those of the names in `but`
    are not looked at.

    Raises UserError for one that cannot be read or that this version does not know.
    """
    store = storage_of(folder / "decisions")
    names = [name for name in store.list("") if name.endswith(".json")]
    for name in names:
        if not NAME.fullmatch(name):
            raise UserError(
                f"decisions/{name} has no number: name it as 00000001.json, the next one there is."
            )
    return [
        decision(f"decisions/{name}", store.get_range(name, 0, 1 << 20), int(name[:8]))
        for name in names
        if name[:8] not in but
    ]


def decision(name: str, body: bytes, number: int) -> Decision:
    """Raises UserError for a body that is no decision."""
    try:
        entry = json.loads(body)
        kind, step = entry["kind"], entry["step"]
        amends = kind == "amend"
        position = 0 if amends else entry["position"]
        key, value = (entry["key"], entry["value"]) if amends else ("", "")
    except (ValueError, TypeError, KeyError):
        raise UserError(
            f"{name} is no decision: restore it from a copy of the run folder."
        ) from None
    if kind not in ("amend", "roll_back"):
        raise UserError(
            f"{name} is of the kind {kind!r}, which this version does not know: "
            "go on with the version that wrote it."
        )
    if not all(isinstance(n, int) and n >= 0 for n in (step, position)):
        raise UserError(f"{name}: give step and position as whole numbers, 0 or more.")
    if amends and not (step and key and isinstance(key, str) and isinstance(value, str)):
        raise UserError(f"{name}: give step as 1 or more, key and value as they would be typed.")
    return Decision(number, step, position, key, value)


def jumps(decisions: Iterable[Decision]) -> dict[int, int]:
    """Finished steps -> the position at which the next one begins; one that a later decision went
    back behind is void.
    """
    out: dict[int, int] = {}
    for d in decisions:
        if d.kind == "roll_back":
            out = {step: position for step, position in out.items() if step < d.step}
            out[d.step] = d.position
    return out


def amendments(decisions: Iterable[Decision]) -> list[Decision]:
    """In the order in which they come to hold: by step, of one step by number. A roll-back takes
    none of them back.
    """
    found = [d for d in decisions if d.kind == "amend"]
    return sorted(found, key=lambda d: (d.step, d.number))


def abandoned(manifest: dict[str, Any], decisions: Iterable[Decision]) -> bool:
    """Whether a checkpoint lies beyond what a decision leaves as it is, and its run did not know of
    it.
    """
    known = manifest.get("decisions", [])
    return any(manifest["step"] > d.behind for d in decisions if d.name not in known)


def check_known(manifest: dict[str, Any], decisions: Iterable[Decision], folder: AnyPath) -> None:
    """Raises UserError where a checkpoint's run knew a decision that is no longer there."""
    missing = set(manifest.get("decisions", [])) - {d.name for d in decisions}
    if missing:
        raise UserError(
            f"{folder}/decisions/{min(missing)}.json is missing, and the run's checkpoints follow "
            "it: restore it from a copy of the run folder."
        )
