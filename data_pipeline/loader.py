"""The loader: step -> this rank's batch, read and decoded in worker processes.

A batch is addressed by its step alone, so that any worker can make any batch, a start anywhere costs the same,
and the only state is one integer: the position after the last batch that was handed out.
"""

import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from data_pipeline.batch import Batch
from data_pipeline.errors import BadSample
from data_pipeline.order import AUGMENT, draws
from data_pipeline.read import ChunkReader

PR_SET_PDEATHSIG = 1


class Reader(Protocol):
    """Sample bytes and keyed randomness in, arrays out; picklable."""

    def __call__(self, members: dict[str, bytes], draw: Callable[[int, int], np.ndarray]) -> dict[str, np.ndarray]: ...
    def blank(self) -> dict[str, np.ndarray]: ...


class InOrder:
    """Every sample once in tar order: the order of an evaluation."""

    def __init__(self, n: int) -> None:
        self.n = n

    def ids(self, positions: np.ndarray) -> np.ndarray:
        return positions

    def epochs(self, positions: np.ndarray) -> np.ndarray:
        return np.zeros_like(positions)

    def share(self, step: int, batch: int, rank: int, world: int) -> np.ndarray:
        cap = -(-batch // world)
        inside = np.arange(rank * cap, min(batch, (rank + 1) * cap))
        at = step * batch + inside
        out = np.full(cap, -1, np.int64)
        out[: len(at)] = np.where(at < self.n, at, -1)
        return out


def uniforms(seed: int, source: int, sample: int, epoch: int) -> Callable[[int, int], np.ndarray]:
    """draw(view, n): n float64 numbers in [0, 1) that belong to (seed, sample, epoch, view)."""

    def draw(view: int, n: int) -> np.ndarray:
        words = np.asarray(draws(seed, AUGMENT + 256 * source, view, sample, epoch, n), dtype=np.uint64)
        return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53

    return draw


@dataclass
class Batches(TorchDataset):
    """`batches[step]` is the share of one rank as plain arrays; see `Batch` for the shapes."""

    index: Any
    order: Any
    reader: Reader
    global_batch: int
    rank: int
    world: int
    seed: int = 0
    source: int = 0
    chunks: ChunkReader | None = field(default=None, repr=False)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "chunks": None}  # memory maps and caches belong to one process

    def __getitem__(self, step: int) -> dict[str, Any]:
        if self.chunks is None:
            self.chunks = ChunkReader(self.index)
        positions = self.order.share(step, self.global_batch, self.rank, self.world)
        n = len(positions)
        inside = positions >= 0
        ids = np.full(n, -1, np.int64)
        epochs = np.zeros(n, np.int64)
        ids[inside] = self.order.ids(positions[inside])
        epochs[inside] = self.order.epochs(positions[inside])
        valid = np.zeros(n, bool)
        blank = self.reader.blank()
        data = {k: np.zeros((n, *v.shape), v.dtype) for k, v in blank.items()}
        bad = []
        for i in np.flatnonzero(inside):
            g, epoch = int(ids[i]), int(epochs[i])
            try:
                _, members = self.chunks.sample(g)
                row = self.reader(members, uniforms(self.seed, self.source, g, epoch))
            except BadSample as e:
                bad.append({"kind": "sample", "reason": e.reason, "id": self.chunks.id(g), "sample": g,
                            "epoch": epoch, "position": int(positions[i]), "slot": self.rank * n + int(i)})
                continue
            for k, v in row.items():
                data[k][i] = v
            valid[i] = True
        tensors = {k: torch.from_numpy(v) for k, v in data.items()}
        slot = np.where(inside, self.rank * n + np.arange(n), -1)
        return {"data": tensors, "valid": torch.from_numpy(valid), "ids": torch.from_numpy(ids),
                "epoch": torch.from_numpy(epochs), "slot": torch.from_numpy(slot), "bad": tuple(bad)}


def same(x: Any) -> Any:
    return x


def die_with_parent(parent: int) -> None:
    """SIGKILL of the parent ends this process too; checked once more because the parent may be gone already."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


class WorkerStart:
    """Runs first in each loader worker."""

    def __init__(self) -> None:
        self.trainer = os.getpid()

    def __call__(self, worker: int) -> None:
        torch.set_num_threads(1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's to answer
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        watch_parent(self.trainer)


def watch_parent(trainer: int) -> None:
    """A worker of a fork server is no child of the trainer: a thread looks whether the trainer still lives."""
    import threading

    def look() -> None:
        while True:
            time.sleep(1)
            try:
                os.kill(trainer, 0)
            except ProcessLookupError:
                os._exit(1)

    threading.Thread(target=look, daemon=True).start()


class Loader:
    """Batches `start`, `start + 1`, ... `stop - 1` of one rank, on `device`.

    `workers` processes read ahead (0: in this process). Ids and pixels do not depend on their number.
    """

    def __init__(self, batches: Batches, *, start: int = 0, stop: int, workers: int = 0,
                 device: torch.device | str = "cpu") -> None:
        self.batches, self.step, self.stop, self.device = batches, start, stop, torch.device(device)
        extra: dict[str, Any] = {}
        if workers:
            extra = {"multiprocessing_context": "forkserver", "worker_init_fn": WorkerStart(), "prefetch_factor": 2}
        self._torch = DataLoader(batches, batch_size=None, sampler=range(start, stop), num_workers=workers,  # type: ignore[arg-type]
                                 collate_fn=same, pin_memory=self.device.type == "cuda", **extra)
        self._it: Iterator | None = None

    def next(self) -> Batch:
        """The next batch; StopIteration after the last."""
        if self._it is None:
            self._it = iter(self._torch)
        batch = Batch(**next(self._it))
        self.step += 1
        return batch.to(self.device) if self.device.type != "cpu" else batch

    def __iter__(self) -> Iterator[Batch]:
        while True:
            try:
                yield self.next()
            except StopIteration:
                return

    @property
    def position(self) -> int:
        """Samples handed out since the beginning of the run: the whole state of the data."""
        return self.step * self.batches.global_batch

    def close(self) -> None:
        """End the workers."""
        stop = getattr(self._it, "_shutdown_workers", None)
        if stop is not None:
            stop()
        self._it = None
