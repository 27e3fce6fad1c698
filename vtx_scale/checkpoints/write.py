"""Saving while the training goes on: staged inside the step, written by a thread,
committed whole or not at all.

Every rank copies its slices and hands them to its writer, which writes data, then a table with the
digest. The writer of rank 0 waits for the tables of all ranks and puts the manifest, which commits
the save. Ranks meet in the storage alone, so a writer never takes part in a collective.
"""

import contextlib
import hashlib
import re
import threading
import time
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from vtx_scale.checkpoints.format import (
    FILE,
    FORMAT,
    Damaged,
    data_of,
    file_names,
    folder_name,
    manifest_name,
    read_manifest,
    seal,
    steps,
    unseal,
)
from vtx_scale.checkpoints.lease import Lost
from vtx_scale.checkpoints.staging import checksum, stage
from vtx_scale.checkpoints.tensor_file import save_file
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.storage import Storage
from vtx_scale.distributed.failpoint import failpoint
from vtx_scale.distributed.sharding import Slice

LEFT = re.compile(r"(\.step-\d{8}\.[^/]*|step-\d{8})/(.*)")  # format 1 wrote in hidden folders
PATIENCE = 300.0  # seconds for a save, beside what its bytes take
LOOK_EVERY = 10.0  # seconds between two looks at the lease
ANSWER = 0.1  # seconds that a step waits for it
SLOW = 20e6  # bytes a second, below which a storage counts as stuck


@dataclass(frozen=True)
class Work:
    """What a save writes: the staged copies, their checksums, the table, and the state of the run
    that rank 0 puts into the manifest. stop: it is to be dropped.
    """

    step: int
    staged: dict[str, torch.Tensor]
    sums: dict[str, int]
    table: list[dict[str, Any]]
    state: dict[str, Any]
    stop: threading.Event


class Writer:
    """One save at a time in the background, into a storage whose objects are those of checkpoints.

    attempt: names this start of the run, the same on every rank. keep: how many of the newest stay,
    beside those that `stays` names of a list of steps. epoch: of the lease under which the run
    writes, 0 for none; held: raises Lost where another has taken it since. patience: seconds that a
    save may take beside what its bytes take at `SLOW`. before: is called when a rank's data is
    written and its table is not, so that what it sees to is there when a checkpoint is.
    """

    def __init__(
        self,
        storage: Storage,
        rank: int,
        world: int,
        attempt: str,
        keep: int,
        *,
        epoch: int = 0,
        held: Callable[[], None] = lambda: None,
        stays: Callable[[list[int]], set[int]] = lambda there: set(),
        patience: float = PATIENCE,
        before: Callable[[], object] = lambda: None,
    ) -> None:
        self.before = before
        self._asking: threading.Thread | None = None
        self._taken = ""  # who has the lease by now
        self.storage, self.rank, self.world, self.attempt = storage, rank, world, attempt
        self.keep, self.epoch, self.held, self.stays = keep, epoch, held, stays
        self.patience = patience
        self.thread: threading.Thread | None = None
        self.stuck: dict[int, threading.Thread] = {}  # abandoned saves that may still wake, by step
        self.step = 0  # of the newest save
        self.lost = False  # another job writes here
        self.stop = threading.Event()  # of the save under way
        self._error: str | None = None
        self.committed: int | None = None
        self.written = 0  # bytes of this rank's last save
        self._began = self._took = self._limit = self._look = 0.0
        self.staged: dict[str, torch.Tensor] = {}  # kept, as fresh memory is slow
        self.sums: dict[str, int] = {}  # of each as it was copied
        self.clear()

    @property
    def busy(self) -> bool:
        return self.thread is not None and self.thread.is_alive()

    @property
    def error(self) -> str | None:
        """Why the save failed, that it takes longer than it may, or, between two saves, that
        another job has the lease.
        """
        now = time.monotonic()
        if self._error is None and self.busy and now > self._began + self._limit:
            self._error = f"writing takes longer than {self._limit:.0f} s"
        if self._error is None and self.rank == 0 and now >= self._look:
            self._look = now + LOOK_EVERY
            self._ask_holder()
        return self._error

    @error.setter
    def error(self, reason: str | None) -> None:
        self._error = reason

    @property
    def seconds(self) -> float:
        """That the newest save took to write, so far where it goes on."""
        return time.monotonic() - self._began if self.busy else self._took

    def _ask_holder(self) -> None:
        """In a thread, which a storage that does not answer holds up in the place of a step."""

        def ask() -> None:
            try:
                self.held()
            except Lost as e:
                self._taken = str(e)
            except OSError:
                pass  # whether it is held is asked again before the next commit

        if self._asking is None or not self._asking.is_alive():
            self._asking = threading.Thread(target=ask, daemon=True)
            self._asking.start()
        self._asking.join(ANSWER)
        if self._taken:
            self.lost, self._error = True, self._taken

    def save(self, step: int, slices: Iterable[Slice], state: dict[str, Any]) -> None:
        """Stage this rank's share and return; `state` is JSON and counts on rank 0 alone."""
        self.wait()
        self.staged, self.sums, table = stage(
            slices, self.staged, each=lambda: failpoint(f"staging-{step}")
        )
        self.error, self.lost, self.stop = None, False, threading.Event()
        self.step, self._began = step, time.monotonic()
        size = sum(t.numel() * t.element_size() for t in self.staged.values())
        self._limit = self.patience + size / SLOW
        work = Work(step, self.staged, self.sums, table, state, self.stop)
        self.thread = threading.Thread(target=self._guarded, args=(work,), daemon=True)
        self.thread.start()

    def wait(self) -> None:
        """Until the save under way has ended, well or not."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None

    def abandon(self) -> None:
        """The save failed, on this rank or another: drop it. A thread that is stuck is left to
        itself with what it writes: it commits nothing when it wakes.
        """
        self.stop.set()
        if self.thread is not None:
            self.thread.join(max(0.0, min(self._began + self._limit - time.monotonic(), 60.0)))
            if self.thread.is_alive():
                self.staged = {}  # its own
                self.stuck[self.step] = self.thread
            self.thread = None

    def clear(self) -> None:
        """Remove what saves that were not committed have left: on rank 0, when no rank writes.

        The files of a save that is stuck stay as long as it is: the manifest may be on its way.
        """
        if self.rank == 0:
            self.stuck = {step: t for step, t in self.stuck.items() if t.is_alive()}
            with contextlib.suppress(OSError):  # it costs room, and no save
                sweep(self.storage, but=self.stuck)

    def _guarded(self, work: "Work") -> None:
        try:
            self._write(work)
            self._took = time.monotonic() - self._began
        except Exception as e:
            if work.stop.is_set():  # nobody waits for it any more
                return
            # reported by the loop at the next step: a save must never end a training
            self.lost = isinstance(e, Lost)
            self.error = (
                str(e) if self.lost else reason(e, f"{self.storage}/{folder_name(work.step)}")
            )

    def _write(self, work: "Work") -> None:
        step = work.step
        data, listed = (f"{folder_name(step)}/{n}" for n in file_names(self.rank, self.epoch))
        with self.storage.scratch(data) as path:
            digest = save_file(work.staged, path)
            for entry, tensor in work.staged.items():
                if checksum(tensor) != work.sums[entry]:
                    raise Damaged(f"the copy of {entry} changed in memory before it was written")
            if work.stop.is_set():
                return
            self.written = path.stat().st_size
            self.storage.put_file(data, path)
        self.before()
        failpoint(f"before-table-{step}")
        about = {"attempt": self.attempt, "size": self.written, "sha256": digest}
        self.storage.put(listed, seal({"slices": work.table, **about}))
        if self.rank == 0 and (files := self._files(work)) is not None:
            failpoint(f"before-manifest-{step}")
            about = {"format": FORMAT, "epoch": self.epoch, "step": step, "files": files}
            if not self._commit(work, seal({**about, **work.state})) or work.stop.is_set():
                return
            self.committed = step
            failpoint(f"after-manifest-{step}")
            with contextlib.suppress(OSError):  # it costs room, and not the save
                self.held()
                if not work.stop.is_set():
                    prune(self.storage, self.keep, self.stays)

    def _files(self, work: "Work") -> dict[str, dict[str, Any]] | None:
        """What the manifest says of every rank's files; None where the save is abandoned."""
        files: dict[str, dict[str, Any]] = {}
        step, until = work.step, time.monotonic() + self._limit
        for rank in range(self.world):
            name, pause = file_names(rank, self.epoch)[1], 0.002
            while (found := self._table(step, name)) is None:
                if work.stop.is_set():
                    return None
                if time.monotonic() > until:
                    raise TimeoutError(
                        f"rank {rank} did not write its part of step {step} in {self._limit:.0f} s"
                    )
                time.sleep(pause := min(2 * pause, 0.25))
            table, body = found
            files[data_of(name)] = {"size": table["size"], "sha256": table["sha256"]}
            files[name] = {"size": len(body), "sha256": hashlib.sha256(body).hexdigest()}
        return files

    def _table(self, step: int, name: str) -> tuple[dict[str, Any], bytes] | None:
        """A rank's table and its bytes; None where this start of the run has not written it yet.

        Raises Damaged where it is not what the rank wrote.
        """
        try:
            with self.storage.open(f"{folder_name(step)}/{name}") as file:
                body = file.read(0, file.size)
        except FileNotFoundError:
            return None
        table = unseal(body, name)
        return (table, body) if table["attempt"] == self.attempt else None

    def _commit(self, work: Work, manifest: bytes) -> bool:
        """Put the manifest where there is none; in place of a damaged one, or of one that this
        run's earlier starts wrote, where the step was redone. False where the save is abandoned.

        Raises Lost where the lease is another's.
        """
        step, name = work.step, manifest_name(work.step)
        while True:
            self.held()
            if work.stop.is_set():  # also while it waited for the lease
                return False
            if self.storage.put_if_absent(name, manifest):
                return True
            head = self.storage.head(name)
            if head is None:
                continue
            if (epoch := epoch_of(self.storage, step)) > self.epoch:
                raise Lost(
                    f"{folder_name(step)} was saved by another job, which has the run since "
                    f"(epoch {epoch}, this one's is {self.epoch})"
                )
            if work.stop.is_set():
                return False
            if self.storage.replace_if(name, manifest, head.tag) is not None:
                with contextlib.suppress(OSError):
                    sweep(self.storage, step)  # the files of the manifest that was there
                return True


def epoch_of(storage: Storage, step: int) -> int:
    """Of the job that saved a checkpoint; 0 where that cannot be read, or there were none."""
    try:
        return int(read_manifest(storage, step).get("epoch", 0))
    except (Damaged, ValueError, TypeError):
        return 0


def reason(e: Exception, name: str) -> str:
    """Which file, and what the system or a library says of it."""
    if isinstance(e, OSError) and e.strerror:
        return f"{e.filename or name}: {e.strerror}"
    return f"{name}: {type(e).__name__}: {e}"


def prune(
    storage: Storage, keep: int, stays: Callable[[list[int]], set[int]] = lambda there: set()
) -> list[int]:
    """Remove all but the newest `keep` checkpoints and those that stay; the steps removed.

    Raises OSError where one cannot be removed, after all that can be, and before any is where
    `stays` raises it.
    """
    there, fault = steps(storage), None
    gone = sorted(set(there[: -keep if keep > 0 else None]) - stays(there))
    for step in gone:
        try:
            remove(storage, step)
        except OSError as e:
            fault = fault or e
    if fault is not None:
        raise fault
    return gone


def remove(storage: Storage, step: int) -> None:
    """The manifest first, so that nobody takes half of one for a checkpoint; what a kill leaves is
    cleared by the next start.
    """
    storage.delete(manifest_name(step))
    for name in list(storage.list(f"{folder_name(step)}/")):
        storage.delete(name)


def sweep(storage: Storage, step: int | None = None, but: Container[int] = ()) -> None:
    """Remove what belongs to no checkpoint: files in a folder without a manifest, and those of
    other saves beside one that can be read. For the holder of the lease, when nothing is saved.

    step: of this one alone. but: steps that are let be.
    """
    committed = set(steps(storage))
    named: dict[int, set[str] | None] = {}  # None: one whose manifest tells nothing
    for name in list(storage.list(f"{folder_name(step)}/" if step is not None else "")):
        found = LEFT.fullmatch(name)
        if not found:
            continue
        of = -1 if found[1].startswith(".") else int(found[1].removeprefix("step-"))
        if of in but:
            continue
        if of in committed:
            if of not in named:
                named[of] = names_of(storage, of)
            known, ours = named[of], FILE.fullmatch(found[2].removesuffix(".part"))
            if known is None or not ours or found[2] in known:
                continue
        storage.delete(name)


def names_of(storage: Storage, step: int) -> set[str] | None:
    """The files that a manifest knows; None where it cannot be read."""
    try:
        return set(read_manifest(storage, step)["files"])
    except (Damaged, UserError):
        return None
