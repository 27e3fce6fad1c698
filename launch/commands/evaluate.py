"""`vtx evaluate RUN`: evaluators on the newest checkpoint of a run folder."""

import argparse
from pathlib import Path

from launch.commands import print_json, print_table

HELP = "score the newest checkpoint of a run"


def arguments(parser: argparse.ArgumentParser) -> None:
    from launch.evaluate import known

    parser.epilog = f"evaluators: {', '.join(known())}; a stranger's is package.module:function"
    parser.add_argument("folder", metavar="RUN", help="a run folder")
    parser.add_argument("--with", dest="names", metavar="NAME,...", default="", help="evaluators (default: the recipe's)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("keys", nargs="*", metavar="key=value", help="data.val_shards=FOLDER, data.hold_out=0.1, ...")


def run(args: argparse.Namespace) -> int:
    from launch import override, run_folder

    folder = Path(args.folder)
    recipe = override.override(run_folder.recipe_of(folder), args.keys)
    from launch.evaluate import evaluate

    names = [n for n in args.names.split(",") if n]
    rows = [{"name": n, **values} for n, values in evaluate(folder, names, recipe).items()]
    for row in rows:
        if args.json:
            print_json(row)
        else:
            print_table([{k: v if isinstance(v, str | int) else f"{v:.4g}" for k, v in row.items()}])
    return 0
