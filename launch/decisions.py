"""What was changed in a run on the way: numbered objects in its folder, made once, never dropped,
and replayed at every start.

`decisions/00000001.json` of the kind "roll_back" says: behind step `step` the run goes on at
`position` of the order. What was computed beyond that step before the decision is abandoned. A
manifest lists the decisions that its run knew; a checkpoint beyond a decision's step that does not
list it belongs to what was abandoned. A person may write one by hand: the next start follows it.
"""

import json
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vtx_scale.checkpoints.format import Damaged, read_manifest, steps
from vtx_scale.checkpoints.write import remove
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.storage import Folder
from vtx_scale.distributed.failpoint import failpoint
from vtx_scale.distributed.ranks import Ranks
from vtx_scale.launch.paths import checkpoints_of
from vtx_scale.trainer.control import Elsewhere, NotFinite
from vtx_scale.trainer.guard import Window
from vtx_scale.trainer.output import Ledger, written

NAME = re.compile(r"(\d{8})\.json")
SAME_STEP = 3  # roll-backs to one step, or to one before it, after which a run is given up


@dataclass(frozen=True)
class Decision:
    """A roll-back: behind `step` the run goes on at `position`. number: from 1."""

    number: int
    step: int
    position: int

    @property
    def name(self) -> str:
        return f"{self.number:08d}"


def read(folder: Path) -> list[Decision]:
    """The decisions of a run, in the order in which they were made.

    Raises UserError for one that cannot be read or that this version does not know.
    """
    store = Folder(folder / "decisions")
    names = [name for name in store.list("") if name.endswith(".json")]
    for name in names:
        if not NAME.fullmatch(name):
            raise UserError(
                f"decisions/{name} has no number: name it as 00000001.json, the next one there is."
            )
    return [
        decision(f"decisions/{name}", store.get_range(name, 0, 1 << 20), int(name[:8]))
        for name in names
    ]


def decision(name: str, body: bytes, number: int) -> Decision:
    """Raises UserError for a body that is no decision."""
    try:
        entry = json.loads(body)
        kind, step, position = entry["kind"], entry["step"], entry["position"]
    except (ValueError, TypeError, KeyError):
        raise UserError(
            f"{name} is no decision: restore it from a copy of the run folder."
        ) from None
    if kind != "roll_back":
        raise UserError(
            f"{name} is of the kind {kind!r}, which this version does not know: "
            "go on with the version that wrote it."
        )
    if not all(isinstance(n, int) and n >= 0 for n in (step, position)):
        raise UserError(f"{name}: give step and position as whole numbers, 0 or more.")
    return Decision(number, step, position)


def shared(folder: Path, ranks: Ranks, device: torch.device) -> list[Decision]:
    """The decisions as rank 0 sees them, on every rank.

    Raises UserError on rank 0 where one cannot be read, Elsewhere on the others.
    """
    found: list[Decision] = []
    fault: UserError | None = None
    if ranks.rank == 0:
        try:
            found = read(folder)
        except UserError as e:
            fault = e
    head = torch.tensor([len(found), fault is not None], dtype=torch.float64, device=device)
    count, failed = ranks.sum(head).tolist()
    if fault is not None:
        raise fault
    if failed:
        raise Elsewhere(2)
    rows = torch.zeros(int(count), 3, dtype=torch.float64, device=device)
    for k, d in enumerate(found):
        rows[k] = torch.tensor([d.number, d.step, d.position], dtype=torch.float64)
    return [Decision(*map(int, row)) for row in (ranks.sum(rows).tolist() if count else [])]


def jumps(decisions: Iterable[Decision]) -> dict[int, int]:
    """Finished steps -> the position at which the next one begins; one that a later decision went
    back behind is void.
    """
    out: dict[int, int] = {}
    for d in decisions:
        out = {step: position for step, position in out.items() if step < d.step}
        out[d.step] = d.position
    return out


def abandoned(manifest: dict[str, Any], decisions: Iterable[Decision]) -> bool:
    """Whether a checkpoint lies beyond the step of a decision that its run did not know."""
    known = manifest.get("decisions", [])
    return any(manifest["step"] > d.step for d in decisions if d.name not in known)


def sweep(folder: Path, decisions: list[Decision]) -> None:
    """Remove the checkpoints that were abandoned: by rank 0, which has the lease.

    Raises UserError, and removes nothing, where none from before a decision would be left.
    """
    checkpoints = checkpoints_of(folder)
    old, left = [], 0
    for step in steps(checkpoints) if decisions else []:
        try:
            manifest = read_manifest(checkpoints, step)
        except Damaged:  # it is passed over and reported by whoever looks for the newest
            continue
        old += [step] if abandoned(manifest, decisions) else []
        left += not abandoned(manifest, decisions)
    back = min((d.step for d in decisions), default=0)
    if old and back and not left:
        raise UserError(
            f"{folder}/decisions go back to step {back}, and no checkpoint from before is left: "
            f"write a decision that goes back to step {old[0]} or later."
        )
    for step in old:
        remove(checkpoints, step)


def check_known(manifest: dict[str, Any], decisions: Iterable[Decision], folder: Path) -> None:
    """Raises UserError where a checkpoint's run knew a decision that is no longer there."""
    missing = set(manifest.get("decisions", [])) - {d.name for d in decisions}
    if missing:
        raise UserError(
            f"{folder}/decisions/{min(missing)}.json is missing, and the run's checkpoints follow "
            "it: restore it from a copy of the run folder."
        )


def tell(folder: Path, decisions: Iterable[Decision]) -> None:
    """Name in the ledger what it does not name yet: without a step, so that it is never cut."""
    lines = written(folder / "ledger.jsonl") if decisions else []
    there = {row.get("decision") for row in lines if row.get("kind") == "decision"}
    for d in decisions:
        if d.name not in there:
            Ledger(folder).write(
                kind="decision", reason="roll_back", decision=d.name, to=d.step, position=d.position
            )


def roll_back(folder: Path, window: Window, step: int, position: int) -> Decision:
    """Decide to go back to the newest checkpoint from before the window, and on at `position`: by
    rank 0, behind `step`. Without one from before, the oldest there is, else the beginning.

    Raises NotFinite where the run has gone back there too often, OSError where it cannot be
    written.
    """
    before = read(folder)
    trunk = [s for s in steps(checkpoints_of(folder)) if on_the_way(folder, s, before)]
    early = [s for s in trunk if s <= step - window.guard.window]
    target = max(early) if early else min(trunk) if trunk else 0
    if sum(d.step >= target for d in before) >= SAME_STEP:
        raise NotFinite(
            f"The run went back to step {target} {SAME_STEP} times and is no better up to step "
            f"{step}: lower optim.lr, or look at the samples that ledger.jsonl names."
        )
    samples = spiked(folder)  # the ledger's lines beyond the target are cut
    entry = {
        "kind": "roll_back",
        "step": target,
        "position": position,
        "from": step,
        "spikes": [
            {"step": n.step, "loss": n.loss, "norm": n.norm, "samples": samples.get(n.step, [])}
            for n in window.spikes()
        ],
        "time": time.time(),
    }
    failpoint(f"before-decision-{step}")
    number = max((d.number for d in before), default=0) + 1
    made = Decision(number, target, position)
    body = json.dumps(entry, indent=1).encode() + b"\n"
    if not Folder(folder / "decisions").put_if_absent(f"{made.name}.json", body):
        raise OSError(f"{folder}/decisions/{made.name}.json was written by another process.")
    failpoint(f"decision-{step}")
    return made


def spiked(folder: Path) -> dict[int, list[int]]:
    """Step -> the samples that the ledger names of its spike."""
    found: dict[int, list[int]] = {}
    for row in written(folder / "ledger.jsonl"):
        if row.get("kind") == "skip" and row.get("reason") == "spike":
            found.setdefault(row["step"], []).extend(row.get("samples", []))
    return found


def on_the_way(folder: Path, step: int, decisions: Iterable[Decision]) -> bool:
    """Whether a checkpoint has a manifest, and is not abandoned."""
    try:
        manifest = read_manifest(checkpoints_of(folder), step)
    except Damaged:
        return False
    return not abandoned(manifest, decisions)
