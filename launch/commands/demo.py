"""`vtx demo`: the whole road in minutes on two cores, on handwritten digits."""

import argparse

from vtx_scale.data_pipeline.errors import UserError

HELP = (
    "train a small CLIP on digits with two processes, kill one, resume, score, export; "
    "minutes on two cores"
)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run",
        dest="folder",
        metavar="DIR",
        default="runs/demo",
        help="where all of it goes (default: runs/demo)",
    )


def run(args: argparse.Namespace) -> int:
    try:
        from vtx_scale.launch.demo import run
    except ImportError as e:
        raise UserError(
            f"vtx demo needs {e.name}: pip install 'vtx-scale[demo,interop]' first."
        ) from None

    return run(args)
