"""`vtx evaluate RUN`: evaluators on the newest checkpoint of a run folder."""

import argparse

from vtx_scale.evaluators import NAMES

HELP = "score the newest checkpoint of a run"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = f"evaluators: {', '.join(NAMES)}; a stranger's is package.module:function"
    parser.add_argument("folder", metavar="RUN", help="a run folder")
    parser.add_argument(
        "--with",
        dest="names",
        metavar="NAME,...",
        default="",
        help="evaluators (default: the recipe's)",
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "keys",
        nargs="*",
        metavar="key=value",
        help="data.val_shards=FOLDER, data.hold_out=0.1, system.device=cuda, ...",
    )


def run(args: argparse.Namespace) -> int:
    from vtx_scale.launch.evaluate import run

    return run(args)
