"""`log.to=wandb`: Weights & Biases, which reads WANDB_PROJECT, WANDB_MODE and the rest itself."""

import os
from typing import Any

import wandb


class WandbSink:
    """A run there. What it has already, from before a kill, is not logged again."""

    def __init__(self, run: Any) -> None:
        self.run = run
        self.known = run.step - 1 if run.resumed else -1  # the last step that it has

    def write(self, step: int, values: dict[str, float]) -> None:
        if step > self.known:
            self.run.log(values, step=step)

    def close(self) -> None:
        self.run.finish()


def open_sink(recipe: dict[str, Any], run_id: str, begin: int) -> WandbSink:
    """As launch/sinks.py says."""
    return WandbSink(
        wandb.init(
            project=os.environ.get("WANDB_PROJECT", "vtx-scale"),
            id=run_id,
            name=run_id,
            config=recipe,
            resume="allow",
            settings=wandb.Settings(console="off", silent=True),
        )
    )
