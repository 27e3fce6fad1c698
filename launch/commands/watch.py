"""`vtx watch RUN`: how a run is doing, in the terminal."""

import argparse

HELP = "show how a run is doing, live in a terminal; elsewhere one block of text"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="RUN", help="a run folder, on disk or s3://bucket/run")
    parser.add_argument("--once", action="store_true", help="print it once and end")
    parser.add_argument(
        "--every",
        type=float,
        metavar="SECONDS",
        help="between two looks (2, and 10 of a bucket)",
    )


def run(args: argparse.Namespace) -> int:
    from vtx_scale.launch.watch import run

    return run(args)
