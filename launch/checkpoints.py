"""What checkpoints a run has, whether they are whole, and which of them stay."""

import argparse

from vtx_scale.checkpoints.read import listing
from vtx_scale.checkpoints.write import prune, sweep
from vtx_scale.data_pipeline.objects import AnyPath
from vtx_scale.launch import decided, decisions, run_folder
from vtx_scale.launch.paths import checkpoints_of
from vtx_scale.launch.places import place_at
from vtx_scale.launch.retention import stays
from vtx_scale.launch.tables import print_json, print_table


def run(args: argparse.Namespace) -> int:
    """List them, verified or cleared where that is asked for; 1 where one is damaged.

    Raises UserError where the folder is no run folder, or is to be cleared while a job writes.
    """
    folder = place_at(args.folder)
    run_folder.read(folder)
    if args.prune:
        clear(folder)
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


def clear(folder: AnyPath) -> None:
    """Remove what the run's own rules let go: checkpoints, those first that a decision abandoned,
    and what killed saves have left.

    Raises UserError where a job writes in the folder, and where a decision leaves no checkpoint.
    """
    storage, recipe = checkpoints_of(folder), run_folder.recipe_of(folder)
    with run_folder.acquire_lease(folder):
        decisions.sweep(folder, decided.read(folder))  # else they count as the newest
        sweep(storage)
        prune(storage, recipe.checkpoint.keep, stays(recipe, folder))
