"""`vtx show recipes|models|keys|RECIPE`."""

import argparse

HELP = "list recipes, models or keys; or show a recipe with what differs from it"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe", metavar="WHAT", help="recipes, models, keys, a recipe, or a file of recipes"
    )
    parser.add_argument("--smoke", action="store_true", help="the tiny sibling of the recipe")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("keys", nargs="*", metavar="key=value")


def run(args: argparse.Namespace) -> int:
    from vtx_scale.launch.show import run

    return run(args)
