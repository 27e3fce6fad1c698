"""TensorBoard's event files, written as the rest of what informs: each event one append, which can
fail and be counted.

TensorBoard's own writer hands events to a thread through a bounded queue: a full disk ends that
thread, and the training then waits at the queue.
"""

import math
import os
import secrets
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary

from vtx_scale.trainer.output import PLACE, add_bytes


class Events:
    """The scalars, pictures and texts of a run, in `folder`.

    resumed: the step at which this start goes on, None at the beginning. Events beyond it, or all
    of a start that came before, are cut from the files that are there; the new file says where it
    begins, so that a TensorBoard which is open drops them too, and the text `run/resumed` marks
    the step.
    """

    def __init__(self, folder: Path, resumed: int | None = None) -> None:
        self.folder = folder
        self.path: Path | None = None
        last = -1 if resumed is None else resumed
        self.begins: int | None = None  # where the new file says that it does
        if any(folder.glob("events.out.tfevents.*")):
            self.begins = last + 1
            PLACE.attempt("tensorboard", lambda: cut_after(folder, last))
        if resumed is not None:
            self.add_text("run/resumed", f"resumed at step {resumed}", resumed)

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """One number; one that is not finite is a gap."""
        number = as_float(value)
        if number is None or math.isfinite(number):
            self._add(step, summary.scalar, tag, value if number is None else number)

    def add_image(self, tag: str, pixels: NDArray[np.uint8] | torch.Tensor, step: int) -> None:
        """One picture, uint8 (H, W, 3)."""
        self._add(step, summary.image, tag, pixels, dataformats="HWC")

    def add_text(self, tag: str, text: str, step: int) -> None:
        """One text, in Markdown."""
        self._add(step, summary.text, tag, text)

    def _add(self, step: int, kind: Any, *arguments: Any, **options: Any) -> None:
        """What TensorBoard does not take (a name, a picture) is dropped like what the disk does
        not take.
        """
        PLACE.attempt(
            "tensorboard",
            lambda: self._write(Event(step=step, summary=kind(*arguments, **options))),
        )

    def _write(self, event: Any) -> None:
        """Raises OSError; the file then ends with the event before."""
        path = self.path
        if path is None or not path.exists():  # also where somebody has tidied up
            path = self._open()
        event.wall_time = time.time()
        size = path.stat().st_size
        try:
            add_bytes(path, record(event.SerializeToString()))
        except OSError:
            os.truncate(path, size)
            raise

    def _open(self) -> Path:
        """A file of its own for each start. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads in the order of names
        own = f"{time.time():.6f}.{socket.gethostname()}.{secrets.token_hex(4)}"
        first = [Event(file_version="brain.Event:2", wall_time=time.time())]
        if self.begins is not None:
            start = SessionLog(status=SessionLog.START)
            first.append(Event(step=self.begins, session_log=start, wall_time=time.time()))
        path = self.folder / f"events.out.tfevents.{own}"
        try:
            add_bytes(path, b"".join(record(e.SerializeToString()) for e in first))
        except OSError:
            path.unlink(missing_ok=True)
            raise
        self.path = path
        return path


def as_float(value: Any) -> float | None:
    """None for what is no number, which TensorBoard then refuses."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


class Bytes:
    """What a RecordWriter writes to."""

    def __init__(self) -> None:
        self.body = b""

    def write(self, data: bytes) -> None:
        self.body += data


def record(data: bytes) -> bytes:
    """Data between its length and its checksums, as a TFRecord has it."""
    out = Bytes()
    RecordWriter(out).write(data)
    return out.body


def cut_after(folder: Path, step: int) -> None:
    """Cut each event file at its first event beyond `step`, or where it is torn. Raises OSError."""
    for path in sorted(folder.glob("events.out.tfevents.*")):
        body, end = path.read_bytes(), 0
        for after, data in records(body):
            if Event.FromString(data).step > step:
                break
            end = after
        if end < len(body):
            os.truncate(path, end)


def records(body: bytes) -> Iterator[tuple[int, bytes]]:
    """(where it ends, data) of each whole TFRecord."""
    at = 0
    while at + 12 <= len(body):
        (n,) = struct.unpack_from("<Q", body, at)
        end = at + 12 + n + 4
        if end > len(body):
            return
        yield end, body[at + 12 : at + 12 + n]
        at = end
