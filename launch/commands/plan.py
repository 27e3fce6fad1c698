"""`vtx plan RECIPE --gpus N`: what a run needs and takes, before a GPU is asked for."""

import argparse
from dataclasses import fields

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


def run(args: argparse.Namespace) -> int:
    from vtx_scale.launch.plan import run

    return run(args)
