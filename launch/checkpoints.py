"""What checkpoints a run has and whether they are whole."""

import argparse

from vtx_scale.checkpoints.read import listing
from vtx_scale.data_pipeline.paths import local_path
from vtx_scale.launch import run_folder
from vtx_scale.launch.paths import checkpoints_of
from vtx_scale.launch.tables import print_json, print_table


def run(args: argparse.Namespace) -> int:
    folder = local_path(args.folder)
    run_folder.read(folder)

    rows = listing(checkpoints_of(folder), deep=args.verify)
    if args.json:
        for row in rows:
            print_json(row)
    elif rows:
        print_table(
            [
                {**r, "valid": ("yes" if args.verify else "manifest") if r["valid"] else "no"}
                for r in rows
            ]
        )
    else:
        print(f"{folder} has no checkpoint yet")
    return int(args.verify and not all(r["valid"] for r in rows))
