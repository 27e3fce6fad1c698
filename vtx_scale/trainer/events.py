"""TensorBoard's event files, written as the rest of what informs: each event one append, which can
fail and be counted.

TensorBoard's own writer hands events to a thread through a bounded queue: a full disk ends that
thread, and the training then waits at the queue.
"""

import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionStartInfo
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary

from vtx_scale.data_pipeline.objects import AnyPath, ObjectPath, storage_of
from vtx_scale.trainer.lines import rewrite
from vtx_scale.trainer.output import PLACE, add_bytes
from vtx_scale.trainer.segments import SEGMENTS
from vtx_scale.trainer.tfrecords import event_files, file_name, records


class Events:
    """The scalars, pictures and texts of a run, in `folder`.

    resumed: the step at which this start goes on, None at the beginning. Events beyond it, or all
    of a start that came before, are cut from the files that are there; the new file says where it
    begins, so that a TensorBoard which is open drops them too, and the text `run/resumed` marks
    the step.
    """

    def __init__(self, folder: AnyPath, resumed: int | None = None) -> None:
        self.folder = folder
        self.path: Path | None = None
        last = -1 if resumed is None else resumed
        self.begins: int | None = None  # where the new file says that it does
        self.tried: tuple[bytes, str] | None = None  # events that are perhaps stored, and where
        PLACE.attempt("tensorboard", lambda: self._cut(last))
        if resumed is not None:
            self.add_text("run/resumed", f"resumed at step {resumed}", resumed)

    def _cut(self, last: int) -> None:
        """Raises OSError."""
        if event_files(self.folder):
            self.begins = last + 1
            cut_after(self.folder, last)

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

    def add_settings(self, settings: Mapping[str, Any], step: int) -> None:
        """The run's settings, for the page HPARAMS, where runs are compared by them. None of a
        field that is not set; what is neither number nor truth value is text.
        """
        PLACE.attempt(
            "tensorboard", lambda: self._write(Event(step=step, summary=session(settings)))
        )

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
        event.wall_time = time.time()
        if isinstance(self.folder, ObjectPath):
            SEGMENTS.add(self.folder, record(event.SerializeToString()), self._send)
            return
        path = self.path
        if path is None or not path.exists():  # also where somebody has tidied up
            path = self._open(Path(str(self.folder)))
        size = path.stat().st_size
        try:
            add_bytes(path, record(event.SerializeToString()))
        except OSError:
            os.truncate(path, size)
            raise

    def _send(self, body: bytes) -> None:
        """Events as a file of their own in a bucket, the same ones again under the same name.
        Raises OSError.
        """
        if self.tried is None or self.tried[0] != body:
            self.tried = body, file_name()
        storage_of(self.folder).put(self.tried[1], self._head() + body)
        self.begins = self.tried = None  # said once

    def _head(self) -> bytes:
        """What a file begins with."""
        first = [Event(file_version="brain.Event:2", wall_time=time.time())]
        if self.begins is not None:
            start = SessionLog(status=SessionLog.START)
            first.append(Event(step=self.begins, session_log=start, wall_time=time.time()))
        return b"".join(record(e.SerializeToString()) for e in first)

    def _open(self, folder: Path) -> Path:
        """A file of its own for each start. Raises OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / file_name()
        try:
            add_bytes(path, self._head())
        except OSError:
            path.unlink(missing_ok=True)
            raise
        self.path = path
        return path


def session(settings: Mapping[str, Any]) -> Summary:
    """What TensorBoard's plugin "hparams" reads of a run."""
    start = SessionStartInfo(start_time_secs=time.time())
    for name, value in settings.items():
        if isinstance(value, bool):
            start.hparams[name].bool_value = value
        elif isinstance(value, int | float):
            start.hparams[name].number_value = value
        elif value is not None:
            listed = isinstance(value, list | tuple)
            start.hparams[name].string_value = ", ".join(map(str, value)) if listed else str(value)
    kind = metadata.create_summary_metadata(HParamsPluginData(session_start_info=start))
    tag = metadata.SESSION_START_INFO_TAG
    return Summary(value=[Summary.Value(tag=tag, metadata=kind, tensor=metadata.NULL_TENSOR)])


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


def cut_after(folder: AnyPath, step: int) -> None:
    """Cut each event file at its first event beyond `step`, or where it is torn. Raises OSError.

    Of a bucket's, which are many, the newest up to one of which nothing had to go.
    """
    for path in reversed(event_files(folder)):
        body, end, first = path.read_bytes(), 0, True
        for after, data in records(body):
            at = Event.FromString(data).step
            if at > step:
                break
            end, first = after, first and not at
        if end < len(body):
            rewrite(path, body, body[:end])
        elif isinstance(path, ObjectPath) and not first:
            return
