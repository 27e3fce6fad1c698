"""`vtx submit --to slurm|kuberay`: a run as a file for a scheduler."""

import argparse
import re
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path

from vtx_scale.cluster.manifests.kuberay import Cluster
from vtx_scale.cluster.manifests.kuberay import kuberay as objects
from vtx_scale.cluster.manifests.slurm import Batch, plain, with_ray
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.objects import AnyPath
from vtx_scale.data_pipeline.paths import SCHEME, local_path
from vtx_scale.data_pipeline.publish import whole
from vtx_scale.launch import attempts, inputs, override, recipes
from vtx_scale.launch.attempts import Attempt
from vtx_scale.launch.checks import check
from vtx_scale.specs.run import Run
from vtx_scale.trainer.output import say


def write(run: Run, folder: AnyPath, args: argparse.Namespace) -> int:
    """Write the file of --output and say so; print it without one and under --dry-run. Raises
    UserError.
    """
    for name, lowest in (("nodes", 1), ("gpus_per_node", 0), ("cpus_per_node", 0), ("grace", 1)):
        if (given := getattr(args, name)) < lowest:
            raise UserError(f"--{name.replace('_', '-')} {given}: give {lowest} or more.")
    text = {"slurm": slurm, "kuberay": kuberay}[args.to](run, folder, args)
    if args.dry_run or args.output in ("", "-"):
        sys.stdout.write(text)
        return 0
    with whole(local_path(args.output, "--output ")) as part:
        part.write_text(text)
    say(f"wrote {args.output}: {next_command(folder, args)}")
    return 0


def next_command(folder: AnyPath, args: argparse.Namespace) -> str:
    """What is typed when the file is there, and what it asks for."""
    file = shlex.quote(args.output)
    if args.to == "kuberay":
        return f"kubectl apply -f {file}, once the secret of its first lines is there"
    here = "" if SCHEME.match(str(folder)) else f", where every node sees {folder.resolve()}"
    return f"sbatch {file}{here}"


def slurm(run: Run, folder: AnyPath, args: argparse.Namespace) -> str:
    """The batch script of a run. Raises UserError where nodes and ranks do not fit."""
    tasks = ranks_of(run, args)
    if 0 < args.cpus_per_node < tasks:
        raise too_few(args.cpus_per_node, f"a machine has {tasks} ranks, a CPU each", tasks)
    if least(run, tasks, args.nodes) < args.nodes and not args.ray:
        raise UserError(
            f"system.world={run.system.world}: under plain srun the world is fixed: add --ray, "
            "or give one number."
        )
    need = 1 + run.system.workers
    recipe = (args.recipe, *(["--smoke"] if args.smoke else []))
    rest = ("--run", str(folder.resolve()), *args.keys)
    job = Batch(
        name=name_of(folder),
        nodes=args.nodes,
        tasks=tasks,
        cpus=args.cpus_per_node // tasks if args.cpus_per_node else need,
        gpus=args.gpus_per_node,
        grace=args.grace,
        threads=run.system.threads,
        folder=str(Path.cwd()),
        run=str(folder.resolve()),
        train=("train", *recipe, *rest),
        submit=("submit", *recipe, *rest),
    )
    return with_ray(job) if args.ray else plain(job)


def kuberay(run: Run, folder: AnyPath, args: argparse.Namespace) -> str:
    """The objects of a run. Raises UserError for a folder that pods do not see."""
    uri = str(folder)
    if not SCHEME.match(uri):
        raise UserError(f"--run {uri}: give s3://bucket/prefix, pods have no folder in common.")
    if recipes.STRANGERS:
        raise UserError(f"{args.recipe} is a file of this machine, and pods have the image alone.")
    ranks = ranks_of(run, args)
    cpus = args.cpus_per_node or ranks * (1 + run.system.workers) + 1  # one for the driver
    if not args.gpus_per_node and cpus <= ranks:
        why = f"a pod has {ranks} ranks, a CPU each, and on one of them is the driver"
        raise too_few(cpus, why, ranks + 1)
    check(run)
    cluster = Cluster(
        name=name_of(folder),
        uri=uri,
        attempt=1,
        image=args.image,
        nodes=args.nodes,
        least=least(run, ranks, args.nodes),
        cpus=cpus,
        gpus=args.gpus_per_node,
        memory=args.memory_per_node,
        grace=args.grace,
        threads=run.system.threads,
        secret=args.secret,
    )
    text = objects(cluster)  # what does not fit is refused before anything is written
    if args.dry_run:
        return text
    return objects(replace(cluster, attempt=begun(run, folder, cluster.name, args)))


def too_few(cpus: int, why: str, least: int) -> UserError:
    """Of processors that do not hold a machine's ranks."""
    return UserError(f"--cpus-per-node {cpus}: {why}: give {least} or more.")


def begun(run: Run, folder: AnyPath, name: str, args: argparse.Namespace) -> int:
    """Write the recipe into the run folder as the next attempt, whose number this is.

    Raises UserError where somebody writes to the folder.
    """
    if (holder := attempts.holder_of(folder)).word == "held":
        raise UserError(f"{folder} is being written by {holder.who}: wait for it, or stop it.")
    number = attempts.next_number(attempts.numbers(folder))
    recipe = override.to_dict(inputs.send(run, folder, say))
    patience = attempts.minutes(args.patience)
    attempt = Attempt(number, f"{name}-{number}", "", time.time(), recipe, "", patience, args.debug)
    if not attempts.claim(folder, attempt):
        raise UserError(f"{folder} has a new attempt by now: run the same command again.")
    return number


def ranks_of(run: Run, args: argparse.Namespace) -> int:
    """Ranks on a node: one a GPU, else what `system.world` leaves for each, else one.

    Raises UserError where nodes x ranks is not the most ranks of the recipe.
    """
    world = most(run)
    ranks: int = args.gpus_per_node or max(1, world // args.nodes)
    if world and ranks * args.nodes != world:
        raise UserError(
            f"system.world={run.system.world} is not {args.nodes} nodes with {ranks} ranks each: "
            "give --nodes and --gpus-per-node that make it, or leave system.world out."
        )
    return ranks


def most(run: Run) -> int:
    """The most ranks that a recipe asks for, 0 where it says nothing."""
    return int(str(run.system.world or 0).rpartition("..")[2])


def least(run: Run, ranks: int, nodes: int) -> int:
    """The fewest nodes with so many ranks on which a recipe goes on: all but under a range."""
    low, dots, _ = str(run.system.world or 0).partition("..")
    return -(-int(low) // ranks) if dots else nodes


def name_of(folder: AnyPath) -> str:
    """A name for a job, of letters that every scheduler takes: the run folder's, behind "vtx-"."""
    word = re.sub(r"[^a-z0-9]+", "-", str(folder).rstrip("/").rpartition("/")[2].lower()).strip("-")
    return f"vtx-{word}"[:40].rstrip("-")
