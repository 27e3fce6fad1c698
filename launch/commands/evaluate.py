"""`vtx evaluate RUN`: evaluators on the newest checkpoint of a run folder."""

import argparse
from pathlib import Path

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.evaluators import NAMES
from vtx_scale.launch.commands import print_json, print_table

HELP = "score the newest checkpoint of a run"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = f"evaluators: {', '.join(NAMES)}; a stranger's is package.module:function"
    parser.add_argument("folder", metavar="RUN", help="a run folder")
    parser.add_argument("--with", dest="names", metavar="NAME,...", default="", help="evaluators (default: the recipe's)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("keys", nargs="*", metavar="key=value", help="data.val_shards=FOLDER, data.hold_out=0.1, ...")


def run(args: argparse.Namespace) -> int:
    from vtx_scale.launch import override, run_folder

    folder = Path(args.folder)
    for key in args.keys:
        if not key.startswith(("data.", "system.")):
            raise UserError(f"{key}: an evaluation takes the model as it was trained; data.* and system.* can be set.")
    recipe = override.override(run_folder.recipe_of(folder), args.keys)
    from vtx_scale.launch.evaluate import evaluate

    lacking = None
    for name, values in evaluate(folder, [n for n in args.names.split(",") if n], recipe):
        if isinstance(values, UserError):
            lacking = lacking or values
        elif args.json:
            print_json({"name": name, **values})
        else:
            print_table([{"name": name, **{k: v if isinstance(v, str | int) else f"{v:.4g}" for k, v in values.items()}}])
    if lacking is not None:  # after all that can be had
        raise lacking
    return 0
