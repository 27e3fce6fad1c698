"""What rank 0 tells of a run: `metrics.jsonl`, TensorBoard,
a live line for people and plain lines for logs.
"""

import sys
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from vtx_scale.data_pipeline.batch import Batch
from vtx_scale.data_pipeline.objects import AnyPath
from vtx_scale.data_pipeline.system import peak_memory
from vtx_scale.trainer.feed import Feed
from vtx_scale.trainer.output import PLACE, append, append_text, json_line, say
from vtx_scale.trainer.step_line import WIDTH, Pace, step_line

if TYPE_CHECKING:
    from vtx_scale.trainer.events import Events


COUNTS = ("samples", "bad")  # of an evaluation


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
        an_epoch: int = 0,
        feed: Feed | None = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        """slot_share: of all devices' peak, what one sample a second uses;
        0 where it is not known. resumed: the step that this start goes on from, None at the
        beginning. share: of the time, in which the run did steps that count, where that is known.
        an_epoch: samples of one, 0 where there is none. feed: who else gets the numbers.
        settings: of the run, by key.
        """
        self.feed, self.settings = feed, settings or {}
        self.pace, self.an_epoch = Pace(steps), an_epoch
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
            console = Console(file=sys.stderr)
            count = len(f"step {steps}/{steps} ")
            bar = max(0, min(40, console.width - count - WIDTH))  # the numbers come first
            self.room = console.width - count - (bar + 1 if bar else 0)
            self.live = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                *([BarColumn(bar)] if bar else []),
                TextColumn("{task.description}", markup=False),
                console=console,
            )
            self.live.start()
            self.task = self.live.add_task("", total=steps, completed=resumed or 0)
        self.last_line = 0.0

    def message(self, line: str) -> None:
        """A line for people, also kept in log.txt."""
        if self.on:
            say(line)
            append_text(self.folder, line)

    def step(self, step: int, *, position: int = 0, **values: float) -> None:
        """One finished step (1..N). position: slots that were handed out until then."""
        if not self.on:
            return
        used = {"mfu": values["samples_per_second"] * self.slot_share} if self.slot_share else {}
        append(
            self.folder / "metrics.jsonl",
            json_line({"step": step, **values, **used, "time": time.time()}),
        )
        if self.feed is not None:
            self.feed.write(step, {**values, **used})
        if step % self.every == 0 or step == self.steps:
            self._board_step(step, values)
        left = self.pace.left(step)
        if self.live is not None:
            line = self._line(values, position, left, "", self.room)
            self.live.update(self.task, completed=step, description=line)
        elif time.monotonic() - self.last_line > 5 or step == self.steps:
            self.last_line = time.monotonic()
            self.message(self._line(values, position, left, f"step {step}/{self.steps}"))

    def _line(
        self,
        values: dict[str, float],
        position: int,
        left: float | None,
        start: str,
        width: int = WIDTH,
    ) -> str:
        return step_line(
            values,
            start=start,
            epoch=position / self.an_epoch if self.an_epoch else None,
            memory=self._memory(),
            left=left,
            width=width,
        )

    def _memory(self) -> int:
        """The most bytes that were held at once: of the device, else of this process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        return peak_memory()

    def _writer(self) -> "Events":
        if self.board is None:
            from vtx_scale.trainer.events import Events  # a second of imports, for rank 0 alone

            self.board = Events(self.folder / "tensorboard", self.resumed)
            if self.settings:
                self.board.add_settings(self.settings, self.resumed or 0)
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
        board.add_scalar("system/memory_gib", self._memory() / 2**30, step)

    def scores(
        self, step: int, name: str, values: dict[str, Any], constants: Collection[str] = ()
    ) -> None:
        """An evaluator's numbers, and its pictures: uint8 (H, W, 3), in TensorBoard alone.

        constants: names of numbers, beside the counts, that say nothing of the model: in
        TensorBoard they are a text, not a curve.
        """
        if not self.on:
            return
        numbers = {k: v for k, v in values.items() if not isinstance(v, np.ndarray)}
        still = {k: v for k, v in numbers.items() if k in COUNTS or k in constants}
        if still:
            words = "  \n".join(f"{key} {short(value)}" for key, value in still.items())
            self._writer().add_text(f"{name}/constants", words, step)
        for key, value in values.items():
            if key in still:
                continue
            if key in numbers:
                self._writer().add_scalar(f"{name}/{key}", value, step)
            else:
                self._writer().add_image(f"{name}/{key}", value, step)
        if self.feed is not None:
            self.feed.write(step, {f"{name}/{key}": value for key, value in numbers.items()})
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
        if self.feed is not None:
            self.feed.close()
        PLACE.close()


def short(value: Any) -> str:
    """A number to four digits; of a stranger's evaluator it may be anything else."""
    try:
        return f"{value:.4g}"
    except (TypeError, ValueError):
        return str(value)


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
