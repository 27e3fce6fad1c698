"""A file per command: HELP, arguments(parser), run(args).

The work stands in a file of its own in `launch`, imported when the command runs, so that help and
refusals are quick.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.objects import AnyPath
from vtx_scale.launch import override, recipes, run_folder
from vtx_scale.launch.places import place_at
from vtx_scale.specs.run import Run


def recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """What every command that names a recipe takes."""
    parser.add_argument(
        "recipe", help="a name of 'vtx show recipes', path.py:function, or a run for its recipe"
    )
    parser.add_argument("--smoke", action="store_true", help="the tiny sibling of the recipe")
    parser.add_argument(
        "keys", nargs="*", metavar="key=value", help="change any field; 'vtx show keys' lists them"
    )


def reading_arguments(parser: argparse.ArgumentParser) -> None:
    """What a command takes that opens a trained run."""
    parser.add_argument(
        "keys",
        nargs="*",
        metavar="key=value",
        help="system.device=cuda, system.precision=bf16: where and how it computes "
        "(the CPU, as it was trained)",
    )


def run_of(args: argparse.Namespace, also: Iterable[str] = ()) -> Run:
    """The Run that recipe, --smoke and key=value mean; that of a run where its folder or its
    run.json is given for a recipe. Raises UserError.

    also: what could have been meant in place of a recipe.
    """
    if (folder := run_folder.named(args.recipe)) is not None:
        if args.smoke:
            raise UserError(f"{folder} is a run: --smoke is of a recipe, so leave it out.")
        return override.override(run_folder.recipe_of(folder), args.keys)
    return override.override(recipes.find(args.recipe, args.smoke, also), args.keys)


def folder_of(args: argparse.Namespace) -> AnyPath:
    """--run, else the run that is given for a recipe, else runs/<recipe>."""
    if args.run_folder:
        return place_at(args.run_folder)
    if (folder := run_folder.named(args.recipe)) is not None:
        return folder
    name = args.recipe.rpartition(":")[2].rpartition("/")[2].removesuffix(".py")
    return Path("runs") / (f"{name}-smoke" if args.smoke else name)
