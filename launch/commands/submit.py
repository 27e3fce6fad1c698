"""`vtx submit RECIPE`: the same worker under Ray Train, on a local or a given cluster."""

import argparse

from vtx_scale.launch import checks
from vtx_scale.launch.commands import folder_of, recipe_arguments, run_of

HELP = "train a recipe on a Ray cluster; a worker that dies is started again"


def arguments(parser: argparse.ArgumentParser) -> None:
    recipe_arguments(parser)
    parser.add_argument(
        "--run",
        dest="run_folder",
        metavar="DIR",
        help="the run folder, which like the shards every node must see (default: runs/RECIPE)",
    )
    parser.add_argument(
        "--address",
        default="local",
        help="HOST:PORT of a Ray cluster's head, or auto, on a machine of that cluster "
        "(default: a cluster of its own on this machine)",
    )
    parser.add_argument(
        "--failures",
        type=int,
        default=8,
        metavar="N",
        help="restarts allowed (default: 8); a run that saves nothing new ends sooner",
    )


def run(args: argparse.Namespace) -> int:
    recipe, folder = run_of(args), folder_of(args)
    checks.refuse_required(recipe, args.recipe)
    from vtx_scale.launch.submit import submit

    return submit(recipe, folder, args.address, args.failures, debug=args.debug)
