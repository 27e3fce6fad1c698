"""The newest checkpoint of a run in another library's layout."""

import argparse
from pathlib import Path

from vtx_scale.interop import export
from vtx_scale.launch.open_run import open_run


def run(args: argparse.Namespace) -> int:
    opened = open_run(args.folder)
    data = opened.recipe.data
    for path in export(
        opened.model, args.to, Path(args.out), data.centre, data.bicubic, not args.without_head
    ):
        print(path)
    return 0
