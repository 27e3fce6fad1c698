"""The newest checkpoint of a run in another library's layout."""

import argparse

import torch

from vtx_scale.data_pipeline.paths import local_path
from vtx_scale.interop import export
from vtx_scale.interop.files import refuse_taken
from vtx_scale.launch.open_run import open_run
from vtx_scale.launch.reading import reading_of

# the type of the numbers that are written; None: as they were trained
WRITTEN = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp64": torch.float64,
}


def run(args: argparse.Namespace) -> int:
    reading = reading_of(args.keys, known=("system.device", "system.precision"))
    out = local_path(args.out)
    refuse_taken(out)
    opened = open_run(args.folder, reading.device)
    if reading.precision in WRITTEN:
        opened.model.to(WRITTEN[reading.precision])
    data = opened.recipe.data
    for path in export(
        opened.model, args.to, out, data.centre, data.bicubic, not args.without_head
    ):
        print(path)
    return 0
