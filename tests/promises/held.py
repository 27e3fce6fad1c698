"""A run that stays at a place until it is let go, and writes down that it is there.

HOLD is a folder: a place holds while the file `PLACE` is in it, and leaves `PLACE.here`.
"""

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

from tests.surfaces.stranger.average_colour import Colour, ColourObjective, ColourReader
from tests.surfaces.stranger.average_colour import average_colour_smoke as colour
from vtx_scale.checkpoints import write
from vtx_scale.data_pipeline import index
from vtx_scale.specs.run import Evaluation

SECONDS = 60.0  # a place lets go by itself: a test that fails must not hang


def hold(place: str) -> None:
    folder = Path(os.environ["HOLD"])
    if place and (folder / place).exists():
        (folder / f"{place}.here").touch()
        until = time.monotonic() + SECONDS
        while (folder / place).exists() and time.monotonic() < until:
            time.sleep(0.02)


@dataclass(frozen=True, kw_only=True)
class HeldColour(Colour):
    build = "tests.promises.held:HeldObjective"


@dataclass
class HeldReader(ColourReader):
    read: int = 0

    def __call__(self, members, draw):
        self.read += 1
        if self.train and self.read > 48:  # the third step
            hold("data")
        return super().__call__(members, draw)


class HeldObjective(ColourObjective):
    @staticmethod
    def reader(spec, data, train):
        return HeldReader(train)

    def forward(self, batch, step=0):
        if len(batch) > 2:  # what a step costs is counted on two
            hold("first" if step == 0 else "step" if step >= 2 else "")
        return super().forward(batch, step)


def held_error(probes, batches, classes, ranks):
    """Holds in its computing, before the second batch."""
    count = 0
    for batch in batches:
        count += int(batch.valid.sum())
        hold("evaluating")
    return {"samples": count}


def held():
    run = colour()
    return replace(
        run,
        objective=HeldColour(),
        steps=8,
        checkpoint=replace(run.checkpoint, every=3),
        evaluate=(Evaluation(name="tests.promises.held:held_error", every=2),),
    )


def holding(function, place):
    def first_hold(*arguments, **options):
        hold(place)
        return function(*arguments, **options)

    return first_hold


if not hasattr(write, "holds"):  # a recipe's file is imported under two names
    write.holds = True
    write.save_file = holding(write.save_file, "saving")
    index.scan = holding(index.scan, "indexing")
