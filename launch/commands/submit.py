"""`vtx submit RECIPE`: a run on a Ray of its own here, or on a cluster."""

import argparse
import math
from typing import Any

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.launch import checks
from vtx_scale.launch.address import check_submission
from vtx_scale.launch.commands import folder_of, recipe_arguments, run_of
from vtx_scale.launch.extras import need

# what only --to reads, where it is not given
UNSET: dict[str, Any] = {
    "output": "",
    "nodes": 1,
    "gpus_per_node": 0,
    "cpus_per_node": 0,
    "memory_per_node": "",
    "grace": 120,
    "ray": False,
    "image": "",
    "secret": "",
}

HELP = "train a recipe on a Ray cluster; a worker that dies is started again"


def arguments(parser: argparse.ArgumentParser) -> None:
    recipe_arguments(parser)
    parser.add_argument(
        "--run",
        dest="run_folder",
        metavar="DIR",
        help="the run folder, which like the shards every node must see (default: runs/RECIPE)",
    )
    parser.add_argument(
        "--address",
        default="local",
        help="http://HOST:8265, a cluster's dashboard: a job that needs this machine no longer; "
        "HOST:PORT of a head, or auto, on a machine of the cluster: driven from here "
        "(default: a cluster of its own on this machine)",
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=math.inf,
        metavar="MINUTES",
        help="how long to wait for machines (default: without end); a run that saves nothing new "
        "ends sooner",
    )
    parser.add_argument(
        "--detach", action="store_true", help="leave as soon as the job is submitted"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be done, and do nothing"
    )
    manifest_arguments(parser)


def manifest_arguments(parser: argparse.ArgumentParser) -> None:
    """What `--to` takes: a file for a scheduler in place of a run that starts now."""
    group = parser.add_argument_group("a file for a scheduler, and nothing is started")
    group.add_argument("--to", choices=("slurm", "kuberay"), help="which scheduler")
    group.add_argument("-o", "--output", metavar="FILE", help="where to (default: standard output)")
    group.add_argument("--nodes", type=int, metavar="N", help="machines (1)")
    group.add_argument("--gpus-per-node", type=int, metavar="G", help="of each (0)")
    group.add_argument(
        "--cpus-per-node", type=int, metavar="C", help="(a rank's, and its loaders')"
    )
    group.add_argument("--memory-per-node", metavar="SIZE", help="such as 900Gi, for kuberay")
    group.add_argument(
        "--grace",
        type=int,
        metavar="SECONDS",
        help="between the scheduler's warning and the end; a save must fit into it (120)",
    )
    group.add_argument(
        "--ray", action="store_true", help="slurm: Ray inside the allocation, not plain srun"
    )
    group.add_argument("--image", help="kuberay: with vtx-scale and its Ray")
    group.add_argument(
        "--secret", help="kuberay: a Secret whose keys the ranks have as environment"
    )
    parser.set_defaults(**UNSET)


def check_unset(args: argparse.Namespace) -> None:
    """Raises UserError for an option of a file for a scheduler where none is asked for."""
    for name, unset in UNSET.items():
        if getattr(args, name) != unset:
            word = "-o" if name == "output" else f"--{name.replace('_', '-')}"
            raise UserError(f"{word} is of --to slurm|kuberay: add that, or leave {word} out.")


def run(args: argparse.Namespace) -> int:
    if not args.to:
        check_unset(args)
    recipe, folder = run_of(args), folder_of(args)
    checks.refuse_required(recipe, args.recipe)
    if not args.to:
        need("ray", "'vtx submit'")
        check_submission(args, folder)
    from vtx_scale.launch.submission import submission

    return submission(recipe, folder, args)
