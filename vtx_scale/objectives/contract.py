"""Whether the forward pass of an objective gives what `base.Objective` promises: asked of its first
call, where what is wrong is one sentence in place of a failure further on.
"""

import contextlib
import os
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vtx_scale.data_pipeline.errors import UserError

# what a line of metrics.jsonl has beside what the objective logs, and what `Log.step` is called by
RESERVED = frozenset(
    {"self", "step", "position", "samples", "loss", "lr", "grad_norm", "time", "mfu"}
    | {"samples_per_second", "data_wait", "seconds"}
)
OF_SOURCES = ("samples/", "epochs/")  # of a mix
PACKAGE = Path(__file__).resolve().parents[1]
OURS = tuple(
    f"{(PACKAGE / part).resolve()}{os.sep}" for part in ("", "launch", "cluster", "data_pipeline")
)
TORCH = f"{Path(torch.__file__).parent}{os.sep}"
# what says nothing of the objective: the device, memory, and a peer that is gone
ELSEWHERE = (UserError, MemoryError, OSError, torch.OutOfMemoryError, torch.AcceleratorError)


def place_of(frames: Iterable[traceback.FrameSummary]) -> str:
    """` (FILE line N)`: the innermost line that is neither ours nor torch's, "" where all are."""
    theirs = [
        frame
        for frame in frames
        if not str(Path(frame.filename).resolve()).startswith((*OURS, TORCH))
    ]
    return f" ({theirs[-1].filename} line {theirs[-1].lineno})" if theirs else ""


def check_losses(who: str, found: Any) -> None:
    """Raises UserError for what is not (sum over the valid slots, what to log by name). who: the
    objective's class.
    """
    if not (isinstance(found, tuple | list) and len(found) == 2):
        what = f"{len(found)} things" if isinstance(found, tuple | list) else kind_of(found)
        raise UserError(
            f"{who}.forward returns {what}: it must return (sum over valid slots, dict of what to "
            "log)."
        )
    loss, logged = found
    if not isinstance(loss, Tensor) or not isinstance(logged, dict):
        raise UserError(
            f"{who}.forward returns ({kind_of(loss)}, {kind_of(logged)}): it must return "
            "(sum over valid slots, dict of what to log)."
        )
    if loss.numel() != 1:
        raise UserError(
            f"{who}.forward: loss has shape {tuple(loss.shape)}: sum it over valid slots."
        )
    check_logged(f"{who}.forward", logged)


def check_logged(where: str, logged: dict[str, Any]) -> None:
    """Raises UserError for a name that is taken, and for what is no tensor of one number."""
    for name, value in logged.items():
        if name in RESERVED or str(name).startswith(OF_SOURCES):
            raise UserError(
                f'{where} logs "{name}", a name that the trainer has for numbers of its own: '
                "choose another."
            )
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise UserError(
                f'{where} logs "{name}" as {kind_of(value)}: give a tensor of one number, a mean '
                "over these slots."
            )


def kind_of(value: Any) -> str:
    """What something is, for a sentence."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return "nothing" if value is None else f"a {type(value).__name__}"


@contextlib.contextmanager
def explained(who: str) -> Iterator[None]:
    """Around the first forward pass of somebody else's objective: what its own lines raise becomes
    a sentence with file and line, as UserError.

    An exception of a device, of memory, or out of a message between ranks stays what it is.
    """
    try:
        yield
    except ELSEWHERE:
        raise
    except Exception as e:
        frames = traceback.extract_tb(e.__traceback__)
        at = place_of(frames)
        between = any("distributed" in Path(frame.filename).parts for frame in frames)
        if not at or between or "CUDA error" in str(e):
            raise
        raise UserError(f"{who}.forward failed: {type(e).__name__}: {e}{at}.") from e
