"""Saving while the training goes on: staged inside the step, written by a thread,
committed whole or not at all.

Every rank copies its slices and hands them to its writer, which writes data, then a table with the
digest. The writer of rank 0 waits for the tables of all ranks, writes the manifest, and gives the
folder its name. Ranks meet in the file system alone, so a writer never takes part in a collective.
"""

import contextlib
import json
import os
import shutil
import stat
import threading
import time
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from vtx_scale.checkpoints.format import (
    FORMAT,
    canonical,
    folder_name,
    seal,
    sha256_file,
    steps,
    write_synced,
)
from vtx_scale.data_pipeline.publish import settle, sync
from vtx_scale.distributed.failpoint import failpoint
from vtx_scale.distributed.sharding import Slice


class Writer:
    """One save at a time in the background.

    `attempt` names this start of the run, the same on every rank.
    """

    def __init__(
        self, folder: Path, rank: int, world: int, attempt: str, keep: int, patience: float = 300.0
    ) -> None:
        self.folder, self.rank, self.world, self.attempt = folder, rank, world, attempt
        self.keep, self.patience = keep, patience
        self.thread: threading.Thread | None = None
        self.error: str | None = None
        self.stop = threading.Event()
        self.committed: int | None = None
        self.written = 0  # bytes of this rank's last save
        if rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            for old in folder.glob(".step-*"):  # what a killed run left behind
                shutil.rmtree(old, ignore_errors=True)

    @property
    def busy(self) -> bool:
        return self.thread is not None and self.thread.is_alive()

    def save(self, step: int, slices: Iterable[Slice], state: dict[str, Any]) -> None:
        """Stage this rank's share and return; `state` is JSON and counts on rank 0 alone."""
        self.wait()
        data: dict[str, torch.Tensor] = {}
        table: list[dict[str, Any]] = []
        for s in slices:
            if s.tensor.numel() == 0 or zlib.crc32(s.key.encode()) % s.replicas != s.replica:
                continue
            entry = f"{s.key}#{len(table)}"
            data[entry] = s.tensor.detach().to("cpu", copy=True).contiguous()
            table.append(
                {
                    "key": s.key,
                    "shape": list(s.shape),
                    "dtype": str(s.tensor.dtype).removeprefix("torch."),
                    "box": [list(b) for b in s.box],
                    "entry": entry,
                }
            )
        self.error = None
        self.stop.clear()
        self.thread = threading.Thread(
            target=self._guarded, args=(step, data, table, state), daemon=True
        )
        self.thread.start()

    def wait(self) -> None:
        """Until the save under way has ended, well or not."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None

    def abandon(self) -> None:
        """Another rank's save failed: drop this one."""
        self.stop.set()
        self.wait()
        if self.rank == 0:
            for torn in self.folder.glob(f".step-*.{self.attempt}"):
                shutil.rmtree(torn, ignore_errors=True)

    def _guarded(
        self,
        step: int,
        data: dict[str, torch.Tensor],
        table: list[dict[str, Any]],
        state: dict[str, Any],
    ) -> None:
        try:
            self._write(step, data, table, state)
        except Exception as e:
            # reported by the loop at the next step: a save must never end a training
            self.error = reason(e, self.folder / folder_name(step))

    def _write(
        self,
        step: int,
        data: dict[str, torch.Tensor],
        table: list[dict[str, Any]],
        state: dict[str, Any],
    ) -> None:
        open_folder = self.folder / f".{folder_name(step)}.{self.attempt}"
        open_folder.mkdir(parents=True, exist_ok=True)
        data_name, table_name = f"data-{self.rank:05d}.safetensors", f"table-{self.rank:05d}.json"
        path = open_folder / data_name
        path.touch()
        mode = stat.S_IMODE(path.stat().st_mode)
        save_file(data, path)  # makes a private file
        settle(path, mode)
        self.written = path.stat().st_size
        listed = {"slices": table, "size": self.written, "sha256": sha256_file(path)}
        failpoint(f"before-table-{step}")
        write_synced(open_folder / f"{table_name}.part", canonical(listed))
        os.rename(open_folder / f"{table_name}.part", open_folder / table_name)
        if self.rank == 0:
            self._commit(step, open_folder, state)

    def _commit(self, step: int, open_folder: Path, state: dict[str, Any]) -> None:
        files: dict[str, dict[str, Any]] = {}
        until = time.monotonic() + self.patience
        for rank in range(self.world):
            table = open_folder / f"table-{rank:05d}.json"
            while not table.exists():
                if self.stop.is_set():
                    return
                if time.monotonic() > until:
                    raise TimeoutError(
                        f"rank {rank} did not write its part of step {step} "
                        f"in {self.patience:.0f} s"
                    )
                time.sleep(0.005)
            body = json.loads(table.read_bytes())
            files[f"data-{rank:05d}.safetensors"] = {"size": body["size"], "sha256": body["sha256"]}
            files[table.name] = {"size": table.stat().st_size, "sha256": sha256_file(table)}
        failpoint(f"before-manifest-{step}")
        write_synced(
            open_folder / "manifest.json",
            seal({"format": FORMAT, "step": step, "files": files, **state}),
        )
        sync(open_folder)
        final = self.folder / folder_name(step)
        if final.exists():  # redone after a damaged checkpoint was passed over
            remove(final)
        failpoint(f"before-rename-{step}")
        os.rename(open_folder, final)
        sync(self.folder)
        self.committed = step
        prune(self.folder, self.keep)


def reason(e: Exception, path: Path) -> str:
    """Which file, and what the system or a library says of it."""
    if isinstance(e, OSError) and e.strerror:
        return f"{e.filename or path}: {e.strerror}"
    return f"{path}: {type(e).__name__}: {e}"


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints."""
    for step in steps(folder)[: -keep if keep > 0 else None]:
        remove(folder / folder_name(step))


def remove(checkpoint: Path) -> None:
    """Take the name away first, at once, so that nobody opens half of one; what a kill leaves is
    cleared by the next start.
    """
    torn = checkpoint.with_name(f".{checkpoint.name}.removed-{os.urandom(4).hex()}")
    with contextlib.suppress(FileNotFoundError):
        os.rename(checkpoint, torn)
        shutil.rmtree(torn, ignore_errors=True)
