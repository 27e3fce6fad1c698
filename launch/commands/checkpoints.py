"""`vtx checkpoints RUN`: what is there and whether it is whole."""

import argparse
from pathlib import Path

from vtx_scale.launch.commands import print_json, print_table

HELP = "list the checkpoints of a run; --verify reads every byte"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="RUN", help="a run folder")
    parser.add_argument("--verify", action="store_true", help="check every byte; exit 1 where one is damaged")
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    from vtx_scale.launch import run_folder

    folder = Path(args.folder)
    run_folder.read(folder)
    from vtx_scale.checkpoints.read import listing

    rows = listing(folder / "checkpoints", deep=args.verify)
    if args.json:
        for row in rows:
            print_json(row)
    elif rows:
        print_table([{**r, "valid": ("yes" if args.verify else "manifest") if r["valid"] else "no"} for r in rows])
    else:
        print(f"{folder} has no checkpoint yet")
    return int(args.verify and not all(r["valid"] for r in rows))
