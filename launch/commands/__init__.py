"""A file per command: HELP, arguments(parser), run(args). The work stands in a file of its own in `launch`, imported when the
command runs, so that help and refusals are quick."""

import argparse
from pathlib import Path

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.launch import override, recipes
from vtx_scale.specs.run import Run


def recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """What every command that names a recipe takes."""
    parser.add_argument("recipe", help="a name of 'vtx show recipes', or path.py:function")
    parser.add_argument("--smoke", action="store_true", help="the tiny sibling of the recipe")
    parser.add_argument("keys", nargs="*", metavar="key=value", help="change any field; 'vtx show keys' lists them")


def run_of(args: argparse.Namespace) -> Run:
    """The Run that recipe, --smoke and key=value mean. Raises UserError."""
    return override.override(recipes.find(args.recipe, args.smoke), args.keys)


def folder_of(args: argparse.Namespace) -> Path:
    """--run, else runs/<recipe>."""
    if args.run_folder:
        return Path(args.run_folder)
    name = args.recipe.rpartition(":")[2]
    return Path("runs") / (f"{name}-smoke" if args.smoke else name)


def need_data(recipe: Run, name: str) -> None:
    """Raises UserError where a recipe leaves open what only its user can give."""
    if recipe.data.shards == "required":
        raise UserError(f"{name} needs data: add data.shards=FOLDER_OF_TARS, or --smoke for toy shards.")


def refuse_open_fields(recipe: Run, name: str) -> None:
    """The same for a training, which may go out from another run."""
    need_data(recipe, name)
    if recipe.init.from_ == "required":
        raise UserError(f"{name} goes on from trained weights: add init.from=RUN, a run folder or exported weights.")
    if getattr(recipe.objective, "teacher_from", "") == "required":
        raise UserError(f"{name} learns from a teacher: add objective.teacher_from=RUN, a run folder or exported weights.")
    if getattr(recipe.objective, "codec_from", "") == "required":
        raise UserError(f"{name} learns from the codes of a discrete VAE: add objective.codec_from=RUN, a run folder or "
                        "exported weights.")
    if getattr(recipe.objective, "palette", "") == "required":
        raise UserError(f"{name} sees pictures in the colours of a palette: add objective.palette=FILE ('vtx data palette' "
                        "finds one) or objective.palette=cube.")
