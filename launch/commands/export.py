"""`vtx export RUN --to LIBRARY DIR`: the newest checkpoint in another library's layout."""

import argparse

from vtx_scale.launch.commands import reading_arguments

HELP = (
    "write a run's weights for transformers, open_clip, timm, torchvision or as plain safetensors"
)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="RUN", help="a run folder")
    parser.add_argument(
        "--to",
        required=True,
        choices=("transformers", "open_clip", "timm", "torchvision", "safetensors"),
    )
    parser.add_argument("--without-head", action="store_true", help="leave the classifier out")
    parser.add_argument("out", metavar="DIR", help="where the files go")
    reading_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from vtx_scale.launch.export import run

    return run(args)
