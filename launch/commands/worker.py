"""`vtx worker --run URI`: a submitted run on the node that drives it."""

import argparse

from vtx_scale.launch.extras import need

HELP = "what a job runs on its node: the run that was submitted to a run folder"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run", dest="run_folder", metavar="URI", required=True, help="the run folder"
    )


def run(args: argparse.Namespace) -> int:
    need("ray", "'vtx worker'")
    from vtx_scale.launch.job import run

    return run(args)
