"""`vtx data encode`: shards of pictures to shards of the codes that a trained dVAE gives them."""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from vtx_scale.data_pipeline.batches import Reader
from vtx_scale.data_pipeline.codes import LIMIT, Coding
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.members import Placed
from vtx_scale.data_pipeline.paths import SCHEME
from vtx_scale.data_pipeline.system import processors
from vtx_scale.data_pipeline.tools.encode import encode
from vtx_scale.launch.codec import CROP, codec_digest, codec_part, crop_of
from vtx_scale.launch.commands import run_of
from vtx_scale.launch.datasets import data_set
from vtx_scale.launch.open_run import OpenRun, open_run
from vtx_scale.launch.places import place_at, storage_at
from vtx_scale.launch.pretrained import held
from vtx_scale.launch.reading import reading_of
from vtx_scale.launch.tables import print_json, print_table
from vtx_scale.objectives.image_reader import ImageReader
from vtx_scale.specs.dvae import CodecConfig
from vtx_scale.specs.objective import ObjectiveSpec
from vtx_scale.specs.run import Augment, Run
from vtx_scale.trainer.output import say

KEYS = (*(f"data.{name}" for name in (*CROP, "caption", "label")), "seed", "system.workers")
KNOWN = ("system.device", "system.precision")


def run(args: argparse.Namespace) -> int:
    """Encode, and say what was written. Raises UserError."""
    reading = reading_of(args.keys, also=KEYS, known=KNOWN)
    recipe = run_of(args)
    folder = place_at(args.folder).absolute()
    codec = codec_of(args, recipe)
    if args.views < 1 or room(args.views, codec) > LIMIT:
        raise UserError(
            f"--views {args.views}: give 1 or more, of {codec.grid} x {codec.grid} codes as many "
            "as 1 MiB holds."
        )
    index = data_set(args.shards, say).index
    digest = codec_digest(folder, recipe.objective)
    coder = Codes(str(folder), recipe.objective, digest, reading.device, reading.precision)
    if args.pool is None:
        coder.open()  # before anything is written
    coding = Coding(
        codec=str(folder),
        digest=digest,
        resolution=codec.resolution,
        grid=codec.grid,
        vocab=codec.vocab,
        views=args.views,
        crop=crop_of(recipe.data),
        seed=recipe.seed,
        source=index.digest.hex()[:32],
    )
    keep = tuple(place for place in (recipe.data.caption, recipe.data.label) if place)
    out = storage_at(args.out if SCHEME.match(args.out) else Path(args.out).absolute())
    reader = reader_of(recipe, codec.resolution, args.views)
    workers = min(recipe.system.workers, processors())
    encoded = encode(index, reader, coder, out, coding, keep, say, workers, args.pool)
    row = {
        "shards": encoded.wrote,
        "there_before": encoded.there,
        "samples": encoded.samples,
        "left_out": encoded.bad,
        "codec": digest[:32],
    }
    print_json(row) if args.json else print_table([{"": k, "value": v} for k, v in row.items()])
    return 0


@dataclass
class Codes:
    """A trained codec, which is opened in the process that uses it.

    digest: of its weights, as it was when the command began.
    """

    folder: str
    objective: ObjectiveSpec
    digest: str
    device: str
    precision: str | None
    run: OpenRun | None = None

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        """(B, S, S, 3) -> (B, h, h) codes. Raises UserError where other weights are there."""
        codes: NDArray[Any] = self.open().probes["codes"](pixels).numpy()
        return codes

    def open(self) -> OpenRun:
        """The run. Raises UserError where other weights are there."""
        if self.run is None:
            self.run = open_run(place_at(self.folder), self.device, self.precision)
            if codec_digest(place_at(self.folder), self.objective) != self.digest:
                raise UserError(f"{self.folder} is being trained: encode when it is at its end.")
        return self.run


def codec_of(args: argparse.Namespace, recipe: Run) -> CodecConfig:
    """The network of the run that encodes. Raises UserError where it trained no codec."""
    part = codec_part(recipe.objective)
    folder = place_at(args.folder)
    there = held(folder, recipe.objective, part) if (folder / "run.json").is_file() else None
    if there is None:
        raise UserError(
            f"{args.folder} is no run folder of a codec: give one that {part.smoke} trained."
        )
    return cast(CodecConfig, there.network)


def room(views: int, codec: CodecConfig) -> int:
    """Bytes of a member."""
    return views * codec.grid**2 * (2 if codec.vocab <= 1 << 16 else 4) + 128


def reader_of(recipe: Run, size: int, views: int) -> Reader:
    """What takes a recipe's training crops, as many as views: the crops, and of one view those of
    the first epoch, that a run of the recipe's seed takes.
    """
    reader = ImageReader(size, replace(recipe.data, augment=Augment(repeats=views)), True)
    return Placed(reader, "", recipe.data.label) if recipe.data.label else reader
