"""What rank 0 tells of a run: `metrics.jsonl`, TensorBoard,
a live line for people and plain lines for logs.
"""

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.data_pipeline.objects import AnyPath
from vtx_scale.trainer.output import PLACE, append, append_text, json_line, say

if TYPE_CHECKING:
    from vtx_scale.trainer.events import Events


class Log:
    """Written at every step; TensorBoard at most 200 times a run unless the run is short."""

    def __init__(
        self,
        folder: AnyPath,
        steps: int,
        *,
        on: bool = True,
        device: torch.device,
        slot_share: float = 0.0,
        resumed: int | None = None,
        share: Callable[[], float | None] = lambda: None,
    ) -> None:
        """slot_share: of all devices' peak, what one sample a second uses;
        0 where it is not known. resumed: the step that this start goes on from, None at the
        beginning. share: of the time, in which the run did steps that count, where that is known.
        """
        self.resumed, self.share = resumed, share
        self.folder, self.steps, self.on, self.device, self.slot_share = (
            folder,
            steps,
            on,
            device,
            slot_share,
        )
        self.every = max(1, min(10, steps // 200))
        self.board: Events | None = None
        self.live: Progress | None = None
        if on and sys.stderr.isatty():
            self.live = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("{task.description}"),
                TimeRemainingColumn(),
                console=Console(file=sys.stderr),
            )
            self.live.start()
            self.task = self.live.add_task("", total=steps)
        self.last_line = 0.0

    def message(self, line: str) -> None:
        """A line for people, also kept in log.txt."""
        if self.on:
            say(line)
            append_text(self.folder, line)

    def step(self, step: int, **values: float) -> None:
        """One finished step (1..N)."""
        if not self.on:
            return
        used = {"mfu": values["samples_per_second"] * self.slot_share} if self.slot_share else {}
        append(
            self.folder / "metrics.jsonl",
            json_line({"step": step, **values, **used, "time": time.time()}),
        )
        if step % self.every == 0 or step == self.steps:
            self._board_step(step, values)
        line = (
            f"loss {values['loss']:.4f}  lr {values['lr']:.2e}  norm {values['grad_norm']:.3f}  "
            f"{values['samples_per_second']:.0f} samples/s"
            if values["samples_per_second"] or math.isfinite(values["loss"])
            else "no valid sample"
        )
        if self.live is not None:
            self.live.update(self.task, completed=step, description=line)
        elif time.monotonic() - self.last_line > 5 or step == self.steps:
            self.last_line = time.monotonic()
            self.message(f"step {step}/{self.steps}  {line}")

    def _writer(self) -> "Events":
        if self.board is None:
            from vtx_scale.trainer.events import Events  # a second of imports, for rank 0 alone

            self.board = Events(self.folder / "tensorboard", self.resumed)
        return self.board

    def _board_step(self, step: int, values: dict[str, float]) -> None:
        board = self._writer()
        for name, value in values.items():
            board.add_scalar(f"train/{name}", value, step)
        if values["seconds"] > 0:
            board.add_scalar("train/data_wait_share", values["data_wait"] / values["seconds"], step)
        if self.slot_share:
            board.add_scalar(
                "train/model_flop_utilisation", values["samples_per_second"] * self.slot_share, step
            )
        if (share := self.share()) is not None:
            board.add_scalar("goodput/share", share, step)
        if self.device.type == "cuda":
            board.add_scalar("system/memory_gib", torch.cuda.max_memory_allocated() / 2**30, step)
        else:
            board.add_scalar("system/memory_gib", peak_kib() / 2**20, step)

    def scores(self, step: int, name: str, values: dict[str, Any]) -> None:
        """An evaluator's numbers, and its pictures: uint8 (H, W, 3), in TensorBoard alone."""
        if not self.on:
            return
        numbers = {k: v for k, v in values.items() if not isinstance(v, np.ndarray)}
        for key, value in values.items():
            if key in numbers:
                self._writer().add_scalar(f"{name}/{key}", value, step)
            else:
                self._writer().add_image(f"{name}/{key}", value, step)
        append(
            self.folder / "evaluations.jsonl",
            json_line({"step": step, "name": name, **numbers}),
        )
        self.message(
            f"step {step}  {name}: " + "  ".join(f"{k} {short(v)}" for k, v in numbers.items())
        )

    def pictures(self, step: int, batch: Batch, captions: list[str]) -> None:
        """Grids of inputs as they leave the loader (all views of a sample stand in a
        row), and captions.
        """
        if not self.on:
            return
        for name in ("image", "globals", "locals"):
            grid = picture_grid(batch[name][:16].cpu()) if name in batch else None
            if grid is not None:
                tag = "inputs" if name == "image" else f"inputs/{name}"
                self._writer().add_image(tag, grid, step)
        if captions:
            self._writer().add_text("captions", "  \n".join(captions[:16]), step)

    def close(self) -> None:
        """Stop the live line, and say what could not be written."""
        if self.live is not None:
            self.live.stop()
        PLACE.close()


def short(value: Any) -> str:
    """A number to four digits; of a stranger's evaluator it may be anything else."""
    try:
        return f"{value:.4g}"
    except (TypeError, ValueError):
        return str(value)


def peak_kib() -> int:
    """The largest resident size of this process so far, in KiB; 0 where the system does not say.

    getrusage's also counts what a parent had before this process began.
    """
    try:
        rows = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(row.split()[1]) for row in rows if row.startswith("VmHWM:")), 0)


def picture_grid(images: torch.Tensor, columns: int = 4) -> torch.Tensor | None:
    """(N, S, S, 3), or (N, V, S, S, 3) with a sample's V views in a row -> one (H, W, 3);
    None where no row is full.
    """
    if images.ndim == 5:
        columns = max(1, images.shape[1])
        images = images[: max(1, 16 // columns)].flatten(0, 1)
    whole = len(images) // columns * columns
    rows = [torch.cat(list(images[i : i + columns]), dim=1) for i in range(0, whole, columns)]
    return torch.cat(rows, dim=0) if rows else None
