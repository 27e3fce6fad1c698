"""`vtx train RECIPE`: train, or go on with the run that is in the folder."""

import argparse

from vtx_scale.launch import checks
from vtx_scale.launch.commands import folder_of, recipe_arguments, run_of

HELP = "train a recipe; the same command on the same folder resumes"


def arguments(parser: argparse.ArgumentParser) -> None:
    recipe_arguments(parser)
    parser.add_argument(
        "--run", dest="run_folder", metavar="DIR", help="the run folder (default: runs/RECIPE)"
    )
    parser.add_argument(
        "--fork",
        action="store_true",
        help="go on from the folder's checkpoint under another recipe",
    )
    parser.add_argument(
        "--yes",
        action="store_true",
        help="make shards of a folder of pictures, a table or a data set, in this user's cache",
    )


def run(args: argparse.Namespace) -> int:
    recipe, folder = run_of(args), folder_of(args)
    checks.refuse_required(recipe, args.recipe)
    from vtx_scale.launch.train import train

    name = f"{args.recipe} --smoke" if args.smoke else args.recipe
    return train(recipe, folder, args.fork, args.debug, name, args.words, args.yes)
