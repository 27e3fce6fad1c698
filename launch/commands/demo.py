"""`vtx demo`: the whole road in minutes on two cores, on handwritten digits."""

import argparse

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
    from vtx_scale.launch.demo import run

    return run(args)
