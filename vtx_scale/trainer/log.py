"""What a run says: `metrics.jsonl`, TensorBoard, a live line for people and plain lines for logs. Rank 0 alone."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vtx_scale.data_pipeline.batch import Batch


class Log:
    """Written at every step; TensorBoard at most 200 times a run unless the run is short."""

    def __init__(self, folder: Path, steps: int, *, on: bool = True, device: torch.device, slot_share: float = 0.0) -> None:
        """slot_share: of all devices' peak, what one sample a second uses; 0 where it is not known."""
        self.folder, self.steps, self.on, self.device, self.slot_share = folder, steps, on, device, slot_share
        self.every = max(1, min(10, steps // 200))
        self.board: Any = None
        self.live: Any = None
        if not on:
            return
        self.metrics = (folder / "metrics.jsonl").open("ab", buffering=0)
        self.text = (folder / "log.txt").open("a", buffering=1)
        if sys.stderr.isatty():
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self.live = Progress(TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"),
                                 TimeRemainingColumn())
            self.live.start()
            self.task = self.live.add_task("", total=steps)
        self.said = 0.0

    def say(self, line: str) -> None:
        """A line for people, also kept in log.txt."""
        if self.on:
            print(line, file=sys.stderr, flush=True)
            self.text.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    def step(self, step: int, **values: float) -> None:
        """One finished step (1..N)."""
        if not self.on:
            return
        self.metrics.write(json.dumps({"step": step, **values, "time": time.time()}).encode() + b"\n")
        if step % self.every == 0 or step == self.steps:
            self._board_step(step, values)
        line = (f"loss {values['loss']:.4f}  lr {values['lr']:.2e}  norm {values['grad_norm']:.3f}  "
                f"{values['samples_per_second']:.0f} samples/s")
        if self.live is not None:
            self.live.update(self.task, completed=step, description=line)
        elif time.monotonic() - self.said > 5 or step == self.steps:
            self.said = time.monotonic()
            self.say(f"step {step}/{self.steps}  {line}")

    def _writer(self) -> Any:
        if self.board is None:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(self.folder / "tensorboard"))
        return self.board

    def _board_step(self, step: int, values: dict[str, float]) -> None:
        board = self._writer()
        for name, value in values.items():
            board.add_scalar(f"train/{name}", value, step)
        if values["seconds"] > 0:
            board.add_scalar("train/data_wait_share", values["data_wait"] / values["seconds"], step)
        if self.slot_share:
            board.add_scalar("train/model_flop_utilisation", values["samples_per_second"] * self.slot_share, step)
        if self.device.type == "cuda":
            board.add_scalar("system/memory_gib", torch.cuda.max_memory_allocated() / 2**30, step)
        else:
            import resource

            board.add_scalar("system/memory_gib", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, step)

    def scores(self, step: int, name: str, values: dict[str, Any]) -> None:
        """An evaluator's numbers, and its pictures: uint8 (H, W, 3), in TensorBoard alone."""
        if self.on:
            numbers = {k: v for k, v in values.items() if not isinstance(v, np.ndarray)}
            for key, value in values.items():
                if key in numbers:
                    self._writer().add_scalar(f"{name}/{key}", value, step)
                else:
                    self._writer().add_image(f"{name}/{key}", value, step, dataformats="HWC")
            with (self.folder / "evaluations.jsonl").open("a") as f:
                f.write(json.dumps({"step": step, "name": name, **numbers}) + "\n")
            self.say(f"step {step}  {name}: " + "  ".join(f"{k} {v:.4g}" for k, v in numbers.items()))

    def pictures(self, step: int, batch: Batch, captions: list[str]) -> None:
        """Grids of inputs as they leave the loader (of several views all that belong to a sample stand in a row), captions."""
        if not self.on:
            return
        for name in ("image", "globals", "locals"):
            if name not in batch:
                continue
            images = batch[name][:16].cpu()
            columns = 4
            if images.ndim == 5:
                columns = max(1, images.shape[1])
                images = images[: max(1, 16 // columns)].flatten(0, 1)
            whole = len(images) // columns * columns
            rows = [torch.cat(list(images[i : i + columns]), dim=1) for i in range(0, whole, columns)]
            if rows:
                self._writer().add_image("inputs" if name == "image" else f"inputs/{name}", torch.cat(rows, dim=0), step,
                                         dataformats="HWC")
        if captions:
            self._writer().add_text("captions", "  \n".join(captions[:16]), step)

    def close(self) -> None:
        if not self.on:
            return
        if self.live is not None:
            self.live.stop()
        if self.board is not None:
            self.board.close()
        self.metrics.close()
        self.text.close()
