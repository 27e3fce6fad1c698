"""`vtx export RUN --to LIBRARY DIR`: the newest checkpoint in another library's layout, or its
probes as programs.
"""

import argparse

from vtx_scale.launch.commands import reading_arguments

HELP = (
    "write a run's weights for transformers, open_clip, timm, torchvision or as plain safetensors, "
    "or its probes as programs (torch_export, onnx)"
)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="RUN", help="a run folder")
    parser.add_argument(
        "--to",
        required=True,
        choices=(
            "transformers",
            "open_clip",
            "timm",
            "torchvision",
            "safetensors",
            "torch_export",
            "onnx",
        ),
    )
    parser.add_argument("--without-head", action="store_true", help="leave the classifier out")
    parser.add_argument(
        "--push", metavar="NAME", default="", help="then upload DIR to the Hugging Face Hub"
    )
    parser.add_argument("out", metavar="DIR", help="where the files go")
    reading_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from vtx_scale.launch.export import run

    return run(args)
