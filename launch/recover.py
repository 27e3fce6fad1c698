"""What a start takes from the memory of the machines: the newest snapshot of which every part is
still somewhere, where it is newer than what the disk has.

All ranks agree on it by what each machine reports, machines that lack files get them from those
that have them, and every file is read against its digest once before any is used. A file that is
not sound is removed where it lies, and the ranks agree anew: on its other copy, on the snapshot
before, or on the disk.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vtx_scale.checkpoints.format import (
    Damaged,
    file_names,
    folder_name,
    manifest_name,
    read_manifest,
    sha256_file,
    steps,
)
from vtx_scale.checkpoints.memory import keep_only
from vtx_scale.checkpoints.placement import (
    Report,
    Transfer,
    fetches,
    newest,
    same_save,
    seconds,
    waves,
)
from vtx_scale.checkpoints.read import Tensors
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.storage import Folder, Storage
from vtx_scale.distributed.exchange import all_json, move_files
from vtx_scale.distributed.sharding import Slice
from vtx_scale.launch.decided import Decision, abandoned
from vtx_scale.launch.snapshots import folder_in_memory, node_name
from vtx_scale.trainer.output import say

STEP = "step-*"
DATA = re.compile(r"data-(\d{5})\.e(\d+)\.safetensors")
TRIES = 4  # at one snapshot: a file of which no copy is sound is found in fewer


class Machine:
    """The ranks of one machine, as this rank of them knows the others.

    folder: in its memory. first: its lowest rank, which answers for it; place, ranks: this rank's
    place among them, and how many there are.
    """

    def __init__(self, folder: Path, rank: int, names: list[str]) -> None:
        self.folder, self.rank = folder, rank
        here = [r for r, name in enumerate(names) if name == names[rank]]
        self.first, self.place, self.ranks = here[0], here.index(rank), len(here)
        self.firsts = [names.index(name) for name in dict.fromkeys(names)]

    @property
    def leads(self) -> bool:
        """Whether this rank answers for it."""
        return self.first == self.rank


def recovered(
    stored: Storage,
    slices: list[Slice],
    rank: int,
    *,
    epoch: int,
    digest: str,
    decisions: list[Decision],
) -> tuple[Storage, int] | None:
    """(the snapshots of this machine, the step of one that can be loaded), on every rank alike;
    None where the disk is as new, or nothing is left. Snapshots of other steps are removed.

    stored: checkpoints on the disk. digest: of the recipe, which a snapshot must have. epoch: of
    the lease; one from before was this launcher's too, whose folder it is, and has a manifest
    because all ranks of that start were there. decisions: those that hold.
    """
    folder = folder_in_memory()
    rows = all_json(node_name() if folder is not None else "")
    if folder is None or not all(rows):
        return None
    here = Machine(folder, rank, rows)
    disk = max(steps(stored), default=-1) if rank == 0 else -1
    after = int(all_json(disk)[0])

    def fits(manifest: dict[str, Any]) -> bool:
        same = manifest["epoch"] <= epoch and manifest.get("hash") == digest
        names = {d.name for d in decisions}
        known = names.issuperset(manifest.get("decisions", []))
        return same and known and not abandoned(manifest, decisions)

    tried: Counter[int] = Counter()
    while True:
        mine = [asdict(r) for r in reports(here, fits)] if here.leads else []
        found = [Report(**{**r, "held": tuple(r["held"])}) for row in all_json(mine) for r in row]
        chosen = newest([r for r in found if tried[r.step] < TRIES], after)
        if chosen is None or gathered(here, chosen, found, slices):
            break
        tried[chosen.step] += 1
    if here.leads:
        keep_only(folder, [chosen.step] if chosen is not None else [])
    return (Folder(folder), chosen.step) if chosen is not None else None


def reports(here: Machine, fits: Callable[[dict[str, Any]], bool]) -> Iterable[Report]:
    """What this machine has, a report for each step and epoch."""
    for path in sorted(here.folder.glob(STEP)):
        step = int(path.name.removeprefix("step-"))
        known: tuple[int, str, int] | None = None  # epoch, digest, parts
        try:
            manifest = read_manifest(Folder(here.folder), step)
            body = (here.folder / manifest_name(step)).read_bytes()
            if fits(manifest):
                digest = hashlib.sha256(body).hexdigest()
                known = manifest["epoch"], digest, len(manifest["files"]) // 2
        except (Damaged, UserError, OSError):
            pass
        held: dict[int, list[int]] = {known[0]: []} if known else {}
        for data in path.glob("data-*"):
            found = DATA.fullmatch(data.name)
            if found and (path / file_names(int(found[1]), int(found[2]))[1]).is_file():
                held.setdefault(int(found[2]), []).append(int(found[1]))
        for epoch, numbers in held.items():
            digest, parts = known[1:] if known and known[0] == epoch else ("", 0)
            yield Report(here.rank, step, epoch, digest, parts, tuple(sorted(numbers)))


def gathered(here: Machine, chosen: Report, found: list[Report], slices: list[Slice]) -> bool:
    """Bring together what this machine's ranks will read of a snapshot, and check it; whether all
    of it is there and sound on every machine. What is not is removed.
    """
    step, those = chosen.step, [r for r in found if same_save(r, chosen)]
    parts = [file_names(number, chosen.epoch) for number in range(chosen.parts)]
    tables, manifest = [table for _, table in parts], "manifest.json"
    has: dict[int, set[str]] = {first: set() for first in here.firsts}
    for r in those:
        has[r.rank] = {name for n in r.held if n < len(parts) for name in parts[n]}
        has[r.rank] |= {manifest} if r.manifest == chosen.manifest else set()
    few = [manifest, *tables]
    move(here, step, fetches({first: few for first in here.firsts}, has, few))
    wrong = faults(here, step, few)
    if not settled(here, step, wrong):
        return False
    needs: dict[int, set[str]] = {first: set() for first in here.firsts}
    for first, names in all_json([here.first, wanted(here, step, slices)]):
        needs[first].update(names)
    data = [name for name, _ in parts]
    for first, names in seconds(needs, has, data).items():
        needs[first] |= names
    move(here, step, fetches({first: sorted(names) for first, names in needs.items()}, has, data))
    return settled(here, step, faults(here, step, sorted(needs[here.first])))


def move(here: Machine, step: int, transfers: Iterable[Transfer]) -> None:
    """Between the ranks that answer for their machines."""
    order = [[(t.name, t.source, t.target) for t in wave] for wave in waves(transfers)]
    move_files(order, here.rank, here.folder / folder_name(step))
    all_json("")  # other ranks of a machine read what its first one got


def wanted(here: Machine, step: int, slices: list[Slice]) -> list[str]:
    """The files of a snapshot that hold some of what this rank reads; none of one whose tables do
    not tell.
    """
    try:
        stored = Folder(here.folder)
        return sorted(Tensors(stored, read_manifest(stored, step)).files_of(slices))
    except (Damaged, UserError, OSError):
        return []


def faults(here: Machine, step: int, names: list[str]) -> list[str]:
    """Of these files on this machine, this rank's share of those that are not what the manifest
    says.
    """
    folder, wrong = here.folder / folder_name(step), []
    try:
        files = read_manifest(Folder(here.folder), step)["files"]
    except (Damaged, UserError):
        return ["manifest.json"] if here.leads else []
    for name in [n for n in names if n in files][here.place :: here.ranks]:
        try:
            if sha256_file(folder / name) != files[name]["sha256"]:
                wrong.append(name)
        except OSError:
            wrong.append(name)
    return wrong


def settled(here: Machine, step: int, wrong: list[str]) -> bool:
    """Whether nothing is wrong on any rank; what is wrong here is removed and said."""
    folder = here.folder / folder_name(step)
    for name in wrong:
        (folder / name).unlink(missing_ok=True)
    rows = all_json(wrong)
    lines = [f"{name} on the machine of rank {r}" for r, row in enumerate(rows) for name in row]
    if lines and here.rank == 0:
        say(f"snapshot {folder_name(step)} in memory: {lines[0]} is damaged or gone: passed over")
    return not lines
