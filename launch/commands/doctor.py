"""`vtx doctor`: what this machine offers a run, and what is missing."""

import argparse

HELP = "what this machine has: versions, processors, memory, disk, and whether ranks can meet"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    from vtx_scale.launch.doctor import run

    return run(args)
