"""`vtx submit RECIPE`: the same worker under Ray Train, on a local or a given cluster."""

import argparse

from launch.commands import folder_of, recipe_arguments, run_of

HELP = "train a recipe on a Ray cluster; a worker that dies is started again"


def arguments(parser: argparse.ArgumentParser) -> None:
    recipe_arguments(parser)
    parser.add_argument("--run", dest="run_folder", metavar="DIR", help="the run folder, seen by every node (default: runs/RECIPE)")
    parser.add_argument("--address", default="local", help="of the Ray cluster: HOST:PORT, auto, or local (default)")
    parser.add_argument("--failures", type=int, default=8, metavar="N", help="restarts allowed (default: 8)")


def run(args: argparse.Namespace) -> int:
    recipe, folder = run_of(args), folder_of(args)
    if recipe.data.shards == "required":
        from data_pipeline.errors import UserError

        raise UserError(f"{args.recipe} needs data: add data.shards=FOLDER_OF_TARS, or --smoke for toy shards.")
    from launch.worker import submit

    return submit(recipe, folder, args.address, args.failures)
