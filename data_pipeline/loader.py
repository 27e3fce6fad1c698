"""The loader: batches made ahead in worker processes, which may die.

The only state is one integer: the position after the last batch that was handed out.
"""

import atexit
import gc
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader

from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.data_pipeline.batches import Batches, arrays, tensors
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.fork_server import preload
from vtx_scale.data_pipeline.parent import signalled
from vtx_scale.data_pipeline.signals import INTERRUPTION, ignore_leaving
from vtx_scale.data_pipeline.state import checked

FOREVER = 1 << 62  # steps
T = TypeVar("T")


def same(x: T) -> T:
    return x


def start_worker(worker: int = 0) -> None:
    """Runs first in each loader process."""
    torch.set_num_threads(1)
    ignore_leaving()
    sys.excepthook = without_disconnections
    signalled(signal.SIGKILL)
    threading.Thread(target=watch_trainer, daemon=True).start()


def without_disconnections(
    kind: type[BaseException], value: BaseException, trace: TracebackType | None
) -> None:
    """A trainer that leaves may hang up while a tensor is handed over: no news, it leaves."""
    if not issubclass(kind, OSError | EOFError):
        sys.__excepthook__(kind, value, trace)


# workers ignore SIGTERM, by which multiprocessing ends them when its process ends
_WORKERS: "weakref.WeakSet[Any]" = weakref.WeakSet()


@atexit.register
def end_workers() -> None:
    """Before multiprocessing waits for them."""
    for worker in list(_WORKERS):
        worker.kill()


def watch_trainer() -> None:
    """A worker is the fork server's child and not the trainer's,
    so it watches the trainer's end of a pipe.
    """
    trainer = multiprocessing.parent_process()
    if trainer is not None:
        trainer.join()
        os._exit(1)


def alone(batches: Batches, step: int) -> dict[str, Any]:
    """The batch of a step, made in a process of its own;
    the sample at which that process dies twice is masked.
    """
    died: Counter[int] = Counter()  # by the slot that was being read, -1 before the first
    context = multiprocessing.get_context("forkserver")
    while died[-1] < 2:
        preload(__name__)
        here, there = context.Pipe()
        skip = [slot for slot, times in died.items() if times >= 2]
        process = context.Process(
            target=_make_alone, args=(there, batches, step, skip), daemon=True
        )
        process.start()
        there.close()
        slot = -1
        try:
            while isinstance(answer := here.recv(), int):
                slot = answer
        except EOFError:
            died[slot] += 1
            continue
        finally:
            process.join(5)
            process.kill()
            here.close()
        if isinstance(answer, UserError):
            raise answer
        return tensors(answer)
    raise OSError("A loader process cannot be started: look at the memory and at 'ulimit -u'.")


def _make_alone(
    pipe: "Connection[Any, Any]", batches: Batches, step: int, skip: Collection[int]
) -> None:
    start_worker()
    try:
        # a tensor is a descriptor of this process, which ends
        batch = arrays(batches.make(step, skip, pipe.send))
        pipe.send(batch)
    except UserError as e:
        pipe.send(e)


class Loader:
    """Batches `start`, `start + 1`, ... `stop - 1` of one rank, on `device`;
    without `stop` they never end.

    `workers` processes read ahead, two batches each (0: in this process). Ids and pixels do not
    depend on their number. A sample at which a worker dies twice is masked. Iterating goes on
    where it left off; `state_dict` names the next batch that was not handed out, whatever was
    read ahead.
    """

    def __init__(
        self,
        batches: Batches,
        *,
        start: int = 0,
        stop: int | None = None,
        workers: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.batches, self.step, self.stop, self.workers = (
            batches,
            start,
            FOREVER if stop is None else stop,
            workers,
        )
        self.device = torch.device(device)
        self._it: Iterator[dict[str, Any]] | None = None

    def _start(self) -> Iterator[dict[str, Any]]:
        extra: dict[str, Any] = {}
        if self.workers:
            preload(__name__)
            extra = {
                "multiprocessing_context": "forkserver",
                "worker_init_fn": start_worker,
                "prefetch_factor": 2,
            }
        loader = DataLoader(
            self.batches,
            batch_size=None,
            sampler=range(self.step, self.stop),
            num_workers=self.workers,
            collate_fn=same,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),
            **extra,
        )  # else its seed is drawn from the global one
        return iter(loader)

    def next(self) -> Batch:
        """The next batch, on the device.

        Raises StopIteration after the last, UserError where the data can no longer be read, OSError
        where no worker can be started.
        """
        if self._it is None:
            with INTERRUPTION.held():
                self._it = self._start()
                _WORKERS.update(getattr(self._it, "_workers", []))
        try:
            batch = Batch(**next(self._it))
        except UserError as e:  # from a worker it comes with a traceback in its text
            raise UserError(str(e).rpartition("UserError: ")[2].strip()) from None
        except (RuntimeError, OSError, EOFError) as e:
            # the last two where it died while a tensor was handed over
            if not self._worker_died():
                raise
            batch = self._without_worker(str(e))
        self.step += 1
        return batch.to(self.device) if self.device.type != "cpu" else batch

    def _worker_died(self) -> bool:
        """Whether a worker has ended, or does within a second."""
        workers = getattr(self._it, "_workers", [])
        return bool(
            workers and multiprocessing.connection.wait([w.sentinel for w in workers], timeout=1)
        )

    def _without_worker(self, message: str) -> Batch:
        """After a worker's death: the batch that is due is made apart,
        and reading ahead begins anew behind it.
        """
        self.close()
        batch = Batch(**alone(self.batches, self.step))
        return replace(
            batch,
            bad=(
                *batch.bad,
                {
                    "kind": "retry",
                    "reason": "worker_died",
                    "position": self.position,
                    "detail": message[:200],
                },
            ),
        )

    def __iter__(self) -> Iterator[Batch]:
        while True:
            try:
                yield self.next()
            except StopIteration:
                return

    @property
    def position(self) -> int:
        """Samples handed out since the beginning of the run: the whole state of the data."""
        return self.batches.start(self.step)

    @property
    def end(self) -> int:
        """The position of the order behind the batch that was handed out last."""
        return self.batches.start(self.step - 1) + self.batches.global_batch

    def state_dict(self) -> dict[str, Any]:
        """{"version", "position", "fingerprint"}, of a mix "segments" too: JSON, and the same on
        every rank.
        """
        return self.batches.state(self.position)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at the state's position, also under another batch size, world or number of workers.

        Raises UserError for the state of another data set or order, and where a mix had other
        weights before.
        """
        position = checked(state, self.batches.fingerprint, self.batches.segments)
        self.close()
        self.step, self.batches.offset = divmod(position, self.batches.global_batch)
        self.batches.jumps = {}

    def abandon(self, grace: float = 3.0) -> None:
        """Before `close`: workers that have not ended in `grace` seconds are killed; they may wait
        for a disk that does not answer.
        """
        for worker in getattr(self._it, "_workers", []):
            late = threading.Timer(grace, worker.kill)
            late.daemon = True
            late.start()

    def close(self) -> None:
        """End the workers; the next batch starts them anew."""
        stop = getattr(self._it, "_shutdown_workers", None)
        if stop is not None:
            stop()
        self._it = None
        self.batches.close()
        if stop is not None:
            # queues of ended workers let go of their semaphores, which nobody else would
            gc.collect()
