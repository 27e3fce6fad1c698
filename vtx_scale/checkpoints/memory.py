"""Snapshots in the memory of the machines that train: checkpoints in the ordinary format, so that a
fault costs steps and not what lies between two checkpoints on the disk.

Each machine has a folder in its memory. A rank stages its slices inside the step; a thread writes
them there, sends what no other machine holds to the next one (`placement` says what), and puts the
manifest when all ranks have told the digests of what they hold. All ranks do this at the same steps
over a process group of their own, so that no collective of the training is mixed with one of these.
Nothing is synced, as nothing outlives the machine; digests are SHA-256 as on the disk, since the
ordinary reader checks them.
"""

import contextlib
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from vtx_scale.checkpoints.format import (
    FORMAT,
    Damaged,
    file_names,
    folder_name,
    seal,
    sha256_file,
    steps,
)
from vtx_scale.checkpoints.placement import (
    Part,
    Share,
    Transfer,
    placement,
    waves,
)
from vtx_scale.checkpoints.staging import Staged, checksum, owner, stage
from vtx_scale.checkpoints.tensor_file import save_file
from vtx_scale.data_pipeline.storage import Folder
from vtx_scale.data_pipeline.system import memory
from vtx_scale.distributed.exchange import all_json, move_files, part_of
from vtx_scale.distributed.failpoint import failpoint
from vtx_scale.distributed.ranks import Ranks
from vtx_scale.distributed.sharding import Box, Slice

MANIFEST = "manifest.json"
LIMIT, CURRENT = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
BESIDE = "snapshots"  # a group that the main thread takes no part in
PATIENCE = 5.0  # seconds for a snapshot under way when a run ends


@dataclass(frozen=True)
class Work:
    """What a snapshot writes: by part the copies, their checksums and the table."""

    step: int
    staged: dict[int, tuple[Staged, dict[str, int], list[dict[str, Any]]]]
    state: dict[str, Any]


class Snapshots:
    """One at a time in the background, the newest two kept.

    folder: in this machine's memory. node: names the machine, differently on each. attempt, epoch,
    before: as of `Writer`. slices: what will be saved. timeout: seconds that ranks wait for one
    another. All ranks make one together, and call the same functions at the same steps.
    """

    def __init__(
        self,
        folder: Path,
        node: str,
        ranks: Ranks,
        attempt: str,
        slices: Iterable[Slice],
        *,
        epoch: int = 0,
        timeout: float = 600.0,
        before: Callable[[], object] = lambda: None,
    ) -> None:
        self.before = before
        self.folder, self.attempt, self.epoch, self.rank = folder, attempt, epoch, ranks.rank
        self.world = ranks.world
        held = [s for s in slices if s.tensor.numel()]
        self.names = names_of(held)
        self.kinds = sorted({(s.replicas, s.replica) for s in held})
        shares = [Share(*kind, digest_of(of_kind(held, kind))) for kind in self.kinds]
        rows = all_json([node, [[s.copies, s.copy, s.digest] for s in shares]])
        names = list(dict.fromkeys(name for name, _ in rows))
        self.nodes = [names.index(name) for name, _ in rows]
        self.shares = [[Share(*s) for s in those] for _, those in rows]
        self.parts = placement(self.nodes, self.shares)
        self.leads = self.nodes.index(self.nodes[self.rank]) == self.rank
        self.sends = [[(t.name, t.source, t.target) for t in wave] for wave in waves(self._sent())]
        limit = timedelta(seconds=timeout)
        self.group = dist.new_group(backend="gloo", timeout=limit, group_desc=BESIDE)
        self.room = room_of(self, held)
        self.thread: threading.Thread | None = None
        self.staged: dict[int, Staged] = {}  # kept, as fresh memory is slow
        self.error = ""  # why the newest failed, on every rank alike
        self.broken = ""  # why this rank makes no more
        # of the start before: it goes when there is a newer one
        self.committed = max(steps(Folder(folder)), default=-1)
        self.seconds = 0.0  # that the newest took to write

    def _sent(self) -> list[Transfer]:
        """Data and table of each part that travels."""
        travels = [part for part in self.parts if part.sent]
        return [
            Transfer(name, part.rank, part.second)
            for part in travels
            for name in file_names(part.number, self.epoch)
        ]

    def written_here(self) -> list[tuple[Part, int, int]]:
        """(part, this rank's share, the copy whose turn it is) of what this rank writes."""
        found = []
        for part in self.parts:
            copy = self.shares[part.rank][part.share].copy
            if part.rank == self.rank:
                found.append((part, part.share, copy))
            elif part.second == self.rank and not part.sent:
                found.append((part, part.twin, copy))
        return found

    def save(self, step: int, slices: Iterable[Slice], state: dict[str, Any]) -> None:
        """Stage what this rank writes and return; `state` is JSON and counts on rank 0 alone."""
        self.wait()
        held = [s for s in slices if s.tensor.numel()]
        if names_of(held) != self.names:  # what was agreed on does not hold
            self.broken = self.broken or "what a checkpoint holds has changed since the start"
            return
        staged = {}
        for part, share, copy in self.written_here():
            those = of_kind(held, self.kinds[share])
            room = self.staged.get(part.number, {})
            staged[part.number] = stage(those, room, copy)
            failpoint(f"memory-staging-{step}")
        self.staged = {number: copies for number, (copies, _, _) in staged.items()}
        work = Work(step, staged, state if self.rank == 0 else {})
        self.thread = threading.Thread(target=self._guarded, args=(work,), daemon=True)
        self.thread.start()

    def wait(self, patience: float | None = None) -> None:
        """Until the snapshot under way is there or has failed. patience: in seconds, endless if
        None.
        """
        if self.thread is not None:
            self.thread.join(patience)

    def close(self) -> None:
        """When no more are made, on all ranks; what is there stays."""
        self.wait(PATIENCE)
        if self.thread is None or not self.thread.is_alive():
            dist.destroy_process_group(self.group)

    def _guarded(self, work: Work) -> None:
        if self.broken:
            return
        began = time.monotonic()
        try:
            self.error = self._write(work)
        except Exception as e:  # the ranks are out of step with one another
            self.broken = f"{type(e).__name__}: {e}"[:500]
        self.seconds = time.monotonic() - began

    def _write(self, work: Work) -> str:
        """Why there is no snapshot, on every rank alike, "" where there is one."""
        step, folder = work.step, self.folder / folder_name(work.step)
        if self.leads:
            keep_only(self.folder, {self.committed, step})
        files, fault = {}, ""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for number in work.staged:
                files[number] = self._write_part(work, number, folder)
        except (OSError, Damaged) as e:
            fault = f"rank {self.rank}: {e}"
        self.before()
        failpoint(f"memory-data-{step}")
        rows = all_json([files, fault, work.state], self.group)
        fault = next((f for _, f, _ in rows if f), "") or apart(rows)
        if not fault:
            known = {n: about for theirs, _, _ in rows for n, about in theirs.items()}
            fault = self._exchange(folder, known)
            if not fault:
                self._commit(step, folder, known, rows[0][2])
        if fault and self.leads:
            shutil.rmtree(folder, ignore_errors=True)
        return fault

    def _write_part(self, work: Work, number: int, folder: Path) -> list[Any]:
        """Data and table of a part; size and digest of each."""
        staged, sums, rows = work.staged[number]
        data, table = (folder / name for name in file_names(number, self.epoch))
        digest = save_file(staged, part_of(data), disk=False)
        for entry, tensor in staged.items():
            if checksum(tensor) != sums[entry]:
                raise Damaged(f"the copy of {entry} changed in memory before it was written")
        part_of(data).rename(data)
        size = data.stat().st_size
        about = {"attempt": self.attempt, "size": size, "sha256": digest}
        body = seal({"slices": rows, **about})
        put(table, body)
        return [size, digest, len(body), hashlib.sha256(body).hexdigest()]

    def _exchange(self, folder: Path, known: dict[str, list[Any]]) -> str:
        """Send what travels, and see that what came is what was sent; on every rank alike why it is
        not, "" where it is.
        """
        missed = move_files(self.sends, self.rank, folder, self.group)
        fault = f"rank {self.rank} did not get {missed[0]}" if missed else ""
        mine = [part for part in self.parts if part.sent and part.second == self.rank]
        for part in mine if not fault else []:
            _, data, _, table = known[str(part.number)]
            found = [sha256_file(folder / name) for name in file_names(part.number, self.epoch)]
            if found != [data, table]:
                fault = f"rank {self.rank} got another part {part.number} than rank {part.rank} has"
        return next((f for f in all_json(fault, self.group) if f), "")

    def _commit(
        self, step: int, folder: Path, known: dict[str, list[Any]], state: dict[str, Any]
    ) -> None:
        """The manifest, once on each machine."""
        files = {}
        for part in self.parts:
            data, table = file_names(part.number, self.epoch)
            size, digest, length, other = known[str(part.number)]
            files[data] = {"size": size, "sha256": digest}
            files[table] = {"size": length, "sha256": other}
        failpoint(f"memory-manifest-{step}")
        if self.leads:
            about = {"format": FORMAT, "epoch": self.epoch, "step": step, "files": files}
            put(folder / MANIFEST, seal({**about, **state}))
        all_json("", self.group)  # whoever goes on from here may rely on it on every machine
        self.committed = step


def of_kind(slices: Iterable[Slice], kind: tuple[int, int]) -> list[Slice]:
    """Those of which so many ranks hold the same, and this rank is that one of them."""
    return [s for s in slices if (s.replicas, s.replica) == kind]


def names_of(slices: Iterable[Slice]) -> list[tuple[str, Box, int, int]]:
    """What tells slices from others."""
    return [(s.key, s.box, s.replicas, s.replica) for s in slices]


def digest_of(slices: Sequence[Slice]) -> str:
    """Of what slices are, not of what they hold."""
    about = [[s.key, s.shape, s.box, str(s.tensor.dtype)] for s in slices]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]


def apart(rows: Sequence[Sequence[Any]]) -> str:
    """Which part two ranks wrote differently that should hold the same, "" for none."""
    known: dict[str, list[Any]] = {}
    for files, _, _ in rows:
        for number, about in files.items():
            if known.setdefault(number, about) != about:
                return f"two ranks that should hold the same wrote another part {number}"
    return ""


def put(path: Path, body: bytes) -> None:
    """Write a file whole."""
    part_of(path).write_bytes(body)
    part_of(path).rename(path)


def keep_only(folder: Path, those: Iterable[int]) -> None:
    """Remove the snapshots of all other steps; the manifest of each first, so that nobody takes
    half of one for one.
    """
    names = {folder_name(step) for step in those if step >= 0}
    for path in sorted(folder.glob("step-*")):
        if path.name not in names:
            (path / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)


def room_of(snapshots: Snapshots, held: Sequence[Slice]) -> str:
    """Why the memory of some machine does not hold two snapshots beside the staged copies, on every
    rank alike; "" where it does.
    """
    mine: dict[int, int] = {}
    for part, share, copy in snapshots.written_here():
        those = of_kind(held, snapshots.kinds[share])
        mine[part.number] = sum(
            s.tensor.numel() * s.tensor.element_size() for s in those if owner(s) == copy
        )
    rows = all_json([mine, available(snapshots.folder)])
    sizes = {int(n): size for theirs, _ in rows for n, size in theirs.items()}
    need = dict.fromkeys(snapshots.nodes, 0)
    for rank, (theirs, _) in enumerate(rows):
        need[snapshots.nodes[rank]] += sum(theirs.values())  # staged
    for part in snapshots.parts:
        for rank in (part.rank, part.second):
            if rank >= 0:
                need[snapshots.nodes[rank]] += 2 * sizes[part.number]
    for rank, (_, room) in enumerate(rows):
        if need[snapshots.nodes[rank]] > room:
            gib = 2**30
            return (
                f"the machine of rank {rank} would need {need[snapshots.nodes[rank]] / gib:,.1f} "
                f"GiB and has {room / gib:,.1f} GiB left"
            )
    return ""


def available(folder: Path) -> int:
    """Bytes that may be written into a folder in memory."""
    status = os.statvfs(folder)
    found = status.f_bavail * status.f_frsize
    if (machine := memory()) is not None:
        found = min(found, machine[0])
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
        found = min(found, int(LIMIT.read_text()) - int(CURRENT.read_text()))
    return found
