"""`vtx show recipes|models|keys|RECIPE|RUN`."""

import argparse

HELP = (
    "list recipes, models or keys; show a recipe with what differs from it, or a run with its "
    "decisions"
)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe",
        metavar="WHAT",
        help="recipes, models, keys, a recipe, a file of recipes, or a run",
    )
    parser.add_argument("--smoke", action="store_true", help="the tiny sibling of the recipe")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("keys", nargs="*", metavar="key=value")


def run(args: argparse.Namespace) -> int:
    from vtx_scale.launch.show import run

    return run(args)
