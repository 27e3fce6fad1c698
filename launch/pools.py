"""Where the work of `vtx data` is done: in processes of this machine, or on a Ray cluster."""

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch

from vtx_scale.cluster.ray_settings import settings
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.pool import Pool
from vtx_scale.data_pipeline.system import processors
from vtx_scale.launch import recipes
from vtx_scale.launch.extras import need
from vtx_scale.trainer.output import say


@contextmanager
def pool_of(args: argparse.Namespace) -> Iterator[Pool | None]:
    """The cluster of --address, None without one. Raises UserError where it does not answer."""
    address = getattr(args, "address", "")
    if not address:
        yield None
        return
    need("ray", f"--address={address}")
    with settings(address):
        from vtx_scale.cluster.ray_tasks import tasks  # Ray reads its settings when it is imported

        with tasks(
            address,
            getattr(args, "workers", 0),
            partial(arrived, tuple(recipes.STRANGERS), os.getcwd()),
            say,
        ) as pool:
            yield pool


def arrived(paths: Sequence[str], folder: str) -> None:
    """In a process of another machine: what was named here has the same name there."""
    torch.set_num_threads(1)
    recipes.let_import(list(paths))
    if os.path.isdir(folder):
        os.chdir(folder)


def workers_of(args: argparse.Namespace, units: int) -> int | Pool:
    """The cluster, else --workers processes, at most one a unit. Raises UserError."""
    if args.workers < 0:
        raise UserError(f"--workers {args.workers}: give 0 or more.")
    if args.pool is not None:
        pool: Pool = args.pool
        return pool
    return min(args.workers or processors(), units)
