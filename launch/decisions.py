"""What the worker does about decisions: it shares them, clears what they abandon, and makes those
of the guard.
"""

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import astuple

import torch

from vtx_scale.checkpoints.format import Damaged, read_manifest, steps
from vtx_scale.checkpoints.write import remove
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.objects import AnyPath, storage_of
from vtx_scale.distributed.failpoint import failpoint
from vtx_scale.distributed.ranks import Ranks
from vtx_scale.launch.decided import Decision, abandoned, read
from vtx_scale.launch.paths import checkpoints_of
from vtx_scale.trainer.control import Elsewhere, NotFinite
from vtx_scale.trainer.guard import Window
from vtx_scale.trainer.lines import written
from vtx_scale.trainer.output import Ledger, say, why

SAME_STEP = 3  # roll-backs to one step, or to one before it, after which a run is given up


def shared(folder: AnyPath, ranks: Ranks, device: torch.device) -> list[Decision]:
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
    body = json.dumps([astuple(d) for d in found]).encode()
    head = torch.tensor([len(body), fault is not None], dtype=torch.float64, device=device)
    size, failed = ranks.sum(head * (ranks.rank == 0)).tolist()
    if fault is not None:
        raise fault
    if failed:
        raise Elsewhere(2)
    row = torch.zeros(int(size), dtype=torch.float64, device=device)
    if ranks.rank == 0:
        row += torch.frombuffer(bytearray(body), dtype=torch.uint8).to(device)
    return [Decision(*values) for values in json.loads(bytes(map(int, ranks.sum(row).tolist())))]


def sweep(folder: AnyPath, decisions: list[Decision], say: Callable[[str], None] = say) -> None:
    """Remove the checkpoints that were abandoned, and say so of those that did not know of an
    amendment: by rank 0, which has the lease.

    Raises UserError, and removes nothing, where none from before a decision would be left.
    """
    checkpoints = checkpoints_of(folder)
    old: dict[int, list[Decision]] = {}  # step -> the decisions that it does not know
    left = 0
    for step in steps(checkpoints) if decisions else []:
        try:
            manifest = read_manifest(checkpoints, step)
        except Damaged:  # it is passed over and reported by whoever looks for the newest
            continue
        those = [d for d in decisions if abandoned(manifest, [d])]
        old |= {step: those} if those else {}
        left += not those
    unknown = [d for those in old.values() for d in those]
    amended = [d for d in unknown if d.kind == "amend"]
    back = min((d.behind for d in unknown), default=0)
    names = ", ".join(sorted({f"decisions/{d.name}.json" for d in amended}))
    first = min((d.step for d in amended), default=0)
    if old and not left and amended:
        raise UserError(
            f"{folder} has no checkpoint from before step {first}, and those that it has did not "
            f"know of {names}: remove what was decided to go on as before, or train in another "
            "folder."
        )
    if old and back and not left:
        raise UserError(
            f"{folder}/decisions go back to step {back}, and no checkpoint from before is left: "
            f"write a decision that goes back to step {min(old)} or later."
        )
    if amended:
        say(
            f"step {min(old)} and on did not know of {names}, which hold from step {first} on: "
            "they are computed again"
        )
    for step in old:
        remove(checkpoints, step)


def tell(folder: AnyPath, decisions: Iterable[Decision]) -> None:
    """Name in the ledger what it does not name yet: without a step, so that it is never cut."""
    try:
        lines = written(folder / "ledger.jsonl") if decisions else []
    except OSError as e:
        say(f"ledger.jsonl cannot be read ({why(e)}): the next start names the decisions in it")
        return
    there = {row.get("decision") for row in lines if row.get("kind") == "decision"}
    for d in decisions:
        if d.name not in there:
            about = {"from": d.step, "key": d.key, "value": d.value}
            if d.kind == "roll_back":
                about = {"to": d.step, "position": d.position}
            Ledger(folder).write(kind="decision", reason=d.kind, decision=d.name, **about)


def roll_back(folder: AnyPath, window: Window, step: int, position: int) -> Decision:
    """Decide to go back to the newest checkpoint from before the window, and on at `position`: by
    rank 0, behind `step`. Without one from before, the oldest there is, else the beginning.

    Raises NotFinite where the run has gone back there too often, OSError where it cannot be
    written.
    """
    before = read(folder)
    trunk = [s for s in steps(checkpoints_of(folder)) if on_the_way(folder, s, before)]
    early = [s for s in trunk if s <= step - window.guard.window]
    target = max(early) if early else min(trunk) if trunk else 0
    if sum(d.kind == "roll_back" and d.step >= target for d in before) >= SAME_STEP:
        raise NotFinite(
            f"The run went back to step {target} {SAME_STEP} times and is no better up to step "
            f"{step}: lower optim.lr, or look at the samples that ledger.jsonl names."
        )
    samples: dict[int, list[int]] = {}
    try:
        samples = spiked(folder)  # the ledger's lines beyond the target are cut
    except OSError as e:  # it only informs
        say(f"ledger.jsonl cannot be read ({why(e)}): the decision names no samples")
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
    if not storage_of(folder / "decisions").put_if_absent(f"{made.name}.json", body):
        raise OSError(f"{folder}/decisions/{made.name}.json was written by another process.")
    failpoint(f"decision-{step}")
    return made


def spiked(folder: AnyPath) -> dict[int, list[int]]:
    """Step -> the samples that the ledger names of its spike. Raises OSError."""
    found: dict[int, list[int]] = {}
    for row in written(folder / "ledger.jsonl"):
        if row.get("kind") == "skip" and row.get("reason") == "spike":
            found.setdefault(row["step"], []).extend(row.get("samples", []))
    return found


def on_the_way(folder: AnyPath, step: int, decisions: Iterable[Decision]) -> bool:
    """Whether a checkpoint has a manifest, and is not abandoned."""
    try:
        manifest = read_manifest(checkpoints_of(folder), step)
    except Damaged:
        return False
    return not abandoned(manifest, decisions)
