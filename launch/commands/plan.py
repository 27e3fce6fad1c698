"""`vtx plan RECIPE --gpus N`: what a run needs and takes, before a GPU is asked for."""

import argparse
import math
from dataclasses import fields

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.launch.commands import recipe_arguments
from vtx_scale.planner.hardware import GPUS, SOURCES, Assumed
from vtx_scale.planner.layout import STRATEGIES

HELP = "plan a run on so many GPUs: memory, messages, time and cost of every strategy"


def arguments(parser: argparse.ArgumentParser) -> None:
    recipe_arguments(parser)
    parser.add_argument("--gpus", type=int, required=True, metavar="N", help="how many")
    parser.add_argument(
        "--gpu", default="h100", choices=tuple(GPUS), help="which (default: %(default)s)"
    )
    parser.add_argument(
        "--strategy",
        action="append",
        choices=STRATEGIES,
        help="this one alone; may be given several times (default: all)",
    )
    for field in fields(Assumed):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            dest=f"assume_{field.name}",
            type=type(field.default),
            metavar="X",
            help=f"assumed {field.default:g}: {SOURCES[field.name]}".replace("%", "%%"),
        )
    parser.add_argument("--json", action="store_true")


def check_numbers(args: argparse.Namespace) -> None:
    """Raises UserError for numbers with which nothing can be planned."""
    if args.gpus < 1:
        raise UserError(f"--gpus {args.gpus}: give 1 or more.")
    for field in fields(Assumed):
        value, name = getattr(args, f"assume_{field.name}"), field.name.replace("_", "-")
        if value is None:
            continue
        if not math.isfinite(value):
            raise UserError(f"--{name} {value}: give a finite number.")
        if name in ("efficiency", "link") and not 0 < value <= 1:
            raise UserError(f"--{name} {value}: give a share above 0, up to 1.")
        if name == "reserve" and not 0 <= value < 1:
            raise UserError(f"--{name} {value}: give a share from 0 to below 1.")
        if value < 0 or (value == 0 and name not in ("reserve", "hop-inside", "hop-between")):
            raise UserError(f"--{name} {value}: give a number above 0.")


def run(args: argparse.Namespace) -> int:
    check_numbers(args)
    from vtx_scale.launch.plan import run

    return run(args)
