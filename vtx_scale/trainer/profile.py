"""What rank 0 does in a range of steps, as torch.profiler sees it: `system.profile=20..25`.

    profile/steps-20-25.trace.json.gz   for chrome://tracing, ui.perfetto.dev, TensorBoard
    profile/steps-20-25.memory.json.gz  on a GPU: what its memory held, and each allocation

It looks on and computes nothing. A thread writes, so that a bucket that does not answer holds no
step up; what cannot be recorded or written is said and counted (`output.PLACES`).
"""

import contextlib
import gzip
import json
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, record_function
from torch.profiler import profile as Tracer

from vtx_scale.data_pipeline.objects import AnyPath, storage_of
from vtx_scale.trainer.output import PLACE, why

ALLOCATIONS = 100_000  # the newest so many that a memory snapshot tells of
PATIENCE = 20.0  # seconds at the end of a run for what is still being written


class Profile:
    """Of one start of a run: what is left of the range. Nothing where `steps` is None."""

    def __init__(
        self,
        folder: AnyPath,
        steps: tuple[int, int] | None,
        device: torch.device,
        say: Callable[[str], None],
        scratch: str = "",
    ) -> None:
        """folder: the run's. steps: the first and the last, counted from 1 as in metrics.jsonl.
        say: takes a line for people. scratch: where files wait for a bucket.
        """
        self.place, self.steps, self.say = folder / "profile", steps, say
        self.scratch, self.cuda = scratch or None, device.type == "cuda"
        self.tracer: Tracer | None = None
        self.label = contextlib.ExitStack()  # of the step that is being recorded
        self.first = self.done = 0  # of those that were recorded
        self.thread: threading.Thread | None = None
        self.fault: Exception | None = None  # of the thread

    def begin(self, step: int) -> None:
        """Before a step asks for its samples."""
        if self.steps is None or not self.steps[0] <= step <= self.steps[1]:
            return
        if self.tracer is None:
            try:
                self.tracer = self._started()
            except Exception as e:  # somebody else profiles this process; a build without it
                self.steps = None
                PLACE.failed("profile", why(e))
                return
            self.first, self.done = step, step - 1
        self.label.enter_context(record_function(f"step {step}"))

    def end(self, step: int) -> None:
        """Behind a step."""
        if self.tracer is None or self.steps is None:
            return
        self.label.close()
        self.done = step
        if step == self.steps[1]:
            self._stop()

    def close(self) -> None:
        """At the end of a start, whatever ended it: what was recorded is kept, and it is said
        where.
        """
        if self.tracer is not None:
            self.label.close()
            self._stop()
        if self.thread is None:
            return
        self.thread.join(PATIENCE)
        if self.thread.is_alive():
            self.fault = OSError(f"{self.place}: no answer within {PATIENCE:.0f} s")
        if self.fault is not None:
            PLACE.failed("profile", why(self.fault))
        else:
            self.say(f"what rank 0 did in {self._range()} is in {self.place}")
        self.thread = None

    def _started(self) -> Tracer:
        kinds = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * self.cuda]
        tracer = Tracer(activities=kinds, record_shapes=True)
        if self.cuda:
            torch.cuda.memory._record_memory_history(max_entries=ALLOCATIONS)
        tracer.start()
        return tracer

    def _stop(self) -> None:
        """No more is recorded in this start; a thread writes what was."""
        tracer, self.tracer, self.steps = self.tracer, None, None
        assert tracer is not None
        memory: dict[str, Any] | None = None
        try:
            if self.cuda:
                memory = torch.cuda.memory._snapshot()
                torch.cuda.memory._record_memory_history(enabled=None)
            tracer.stop()
        except Exception as e:  # a device that has failed
            PLACE.failed("profile", why(e))
            return
        if self.done >= self.first:  # else it was left within its first step
            self.thread = threading.Thread(target=self._write, args=(tracer, memory), daemon=True)
            self.thread.start()

    def _write(self, tracer: Tracer, memory: dict[str, Any] | None) -> None:
        stem = f"steps-{self.first}-{self.done}"
        try:
            with tempfile.TemporaryDirectory(prefix="vtx-profile-", dir=self.scratch) as folder:
                kept = storage_of(self.place)
                trace = Path(folder) / f"{stem}.trace.json.gz"
                tracer.export_chrome_trace(str(trace))
                kept.put_file(trace.name, trace)
                if memory is not None:
                    snapshot = Path(folder) / f"{stem}.memory.json.gz"
                    with gzip.open(snapshot, "wt") as file:
                        json.dump(memory, file)
                    kept.put_file(snapshot.name, snapshot)
        except Exception as e:  # a library's writer too
            self.fault = e

    def _range(self) -> str:
        return (
            f"steps {self.first} to {self.done}" if self.done > self.first else f"step {self.done}"
        )
