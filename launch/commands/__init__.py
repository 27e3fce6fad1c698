"""A file per command: HELP, arguments(parser), run(args). What is heavy is imported when the command runs."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any


def recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """What every command that names a recipe takes."""
    parser.add_argument("recipe", help="a name of 'vtx show recipes', or path.py:function")
    parser.add_argument("--smoke", action="store_true", help="the tiny sibling of the recipe")
    parser.add_argument("keys", nargs="*", metavar="key=value", help="change any field; 'vtx show keys' lists them")


def run_of(args: argparse.Namespace) -> Any:
    """The Run that recipe, --smoke and key=value mean. Raises UserError."""
    from vtx_scale.launch import override, recipes

    return override.override(recipes.find(args.recipe, args.smoke), args.keys)


def folder_of(args: argparse.Namespace) -> Path:
    """--run, else runs/<recipe>."""
    if args.run_folder:
        return Path(args.run_folder)
    name = args.recipe.rpartition(":")[2]
    return Path("runs") / (f"{name}-smoke" if args.smoke else name)


def need_data(recipe: Any, name: str) -> None:
    """Raises UserError where a recipe leaves open what only its user can give."""
    from vtx_scale.data_pipeline.errors import UserError

    if recipe.data.shards == "required":
        raise UserError(f"{name} needs data: add data.shards=FOLDER_OF_TARS, or --smoke for toy shards.")


def refuse_open_fields(recipe: Any, name: str) -> None:
    """The same for a training, which may go out from another run."""
    from vtx_scale.data_pipeline.errors import UserError

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


def print_json(value: Any) -> None:
    print(json.dumps(value), flush=False)


def print_table(rows: list[dict[str, Any]], columns: list[str] | None = None) -> None:
    """Rows for people; numbers stand right."""
    from rich.console import Console
    from rich.table import Table

    if not rows:
        return
    columns = columns or list(rows[0])
    table = Table(box=None, pad_edge=False, header_style="bold")
    for c in columns:
        right = isinstance(rows[0].get(c), int | float) and not isinstance(rows[0].get(c), bool)
        table.add_column(c, justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(cell(row[c]) for c in columns))
    Console(width=None if sys.stdout.isatty() else 10_000).print(table)  # a pipe has no width to wrap at


def cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
