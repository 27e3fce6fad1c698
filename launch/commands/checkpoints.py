"""`vtx checkpoints RUN`: what is there and whether it is whole."""

import argparse

HELP = "list the checkpoints of a run; --verify reads every byte, --prune removes old ones"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="RUN", help="a run folder")
    parser.add_argument(
        "--verify", action="store_true", help="check every byte; exit 1 where one is damaged"
    )
    parser.add_argument(
        "--prune",
        action="store_true",
        help="first remove what checkpoint.keep, keep_every and best let go, and leftovers of "
        "saves that were killed; refused while the run trains",
    )
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    from vtx_scale.launch.checkpoints import run

    return run(args)
