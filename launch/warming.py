"""The work of `vtx data warm` and `vtx data bench`: a recipe's samples before it runs."""

import argparse
import re

from vtx_scale.data_pipeline.cache import NodeCache
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.plan import Plan
from vtx_scale.data_pipeline.storage import Folder
from vtx_scale.data_pipeline.tools.bench import bench as bench_batches
from vtx_scale.data_pipeline.tools.warm import warm as warm_cache
from vtx_scale.data_pipeline.users import order_key
from vtx_scale.launch.build import train_batches
from vtx_scale.launch.caching import folder_of, limit_of, shares_of
from vtx_scale.launch.commands import run_of
from vtx_scale.launch.datasets import DataSet, order_of, training_data
from vtx_scale.launch.resolve import resolve_shards
from vtx_scale.launch.tables import print_json, print_table
from vtx_scale.specs.run import Run
from vtx_scale.trainer.output import say

RANKS = re.compile(r"(\d+)(?:-(\d+))?$")


def opened(args: argparse.Namespace) -> tuple[Run, DataSet]:
    """The recipe and its samples."""
    recipe = run_of(args)
    if recipe.data.shards == "required" and not recipe.data.sources:
        raise UserError(f"{args.recipe} {recipe.data.needs['shards']}")
    recipe = resolve_shards(recipe)
    return recipe, training_data(recipe, say)


def caches_of(run: Run, data: DataSet, order: int = 0) -> list[NodeCache]:
    """The cache that a run of this recipe has here, of each source. order: an `order_key`. Raises
    UserError where it has none.
    """
    if run.system.cache.bytes == 0:
        raise UserError("system.cache.bytes=0 means no cache: leave it out, or give more.")
    local = all(isinstance(index.root, Folder) for index in data.indexes)
    if local and not run.system.cache.folder:
        raise UserError(
            f"{data.index.root} is read where it lies: add system.cache.folder=FOLDER for a cache "
            "of local shards."
        )
    folder = folder_of(run.system)
    cache, limit = NodeCache(folder, 0, data.index.digest), run.system.cache.bytes
    if fault := cache.prepare():
        raise UserError(fault)
    limit = limit_of(folder, cache.used()) if limit is None else limit
    NodeCache(folder, limit, data.index.digest).shrink()
    shares = shares_of(limit, data.indexes) or (limit,)
    return [
        NodeCache(folder, limit, index.digest, share, order)
        for index, share in zip(data.indexes, shares, strict=True)
    ]


def warm(args: argparse.Namespace) -> int:
    """Fill this node's cache with what the first steps need."""
    for name, least in (("world", 1), ("steps", 1), ("start", 0)):
        if getattr(args, name) < least:
            raise UserError(f"--{name} {getattr(args, name)}: give {least} or more.")
    run, data = opened(args)
    order, steps = order_of(run, *data.indexes), range(args.start, args.start + args.steps)
    name = order.fingerprint([index.digest for index in data.indexes])
    caches = caches_of(run, data, order_key(name, run.global_batch, args.world))
    ranks = ranks_of(args.ranks, args.world)
    rows = []
    for i, (index, cache) in enumerate(zip(data.indexes, caches, strict=True)):
        plan = Plan(index, order, run.global_batch, ranks, args.world, source=i)
        rows.append(warm_cache(cache, index, plan, steps))
    cache = caches[0]
    found = {
        "steps": min(row["steps"] for row in rows),
        "chunks": sum(row["chunks"] for row in rows),
        "fetched": sum(row["fetched"] for row in rows),
    }
    row = {"folder": str(cache.folder), "limit": cache.limit, "used": cache.used(), **found}
    print_json(row) if args.json else print_table([{"": k, "value": v} for k, v in row.items()])
    if found["steps"] < args.steps:
        say(
            f"{cache.fault or 'The limit is reached:'} {found['steps']} of {args.steps} steps are "
            "there."
        )
    return 0


def ranks_of(text: str, world: int) -> list[int]:
    """`0-7`, `3`, or all of them. Raises UserError for what is no range of the world's ranks."""
    if not text:
        return list(range(world))
    found = RANKS.match(text)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if not first <= last < world:
        raise UserError(f"--ranks {text}: give one as 3 or several as 0-7, below --world {world}.")
    return list(range(first, last + 1))


def bench(args: argparse.Namespace) -> int:
    """What bounds the samples of a recipe on this machine."""
    run, data = opened(args)
    cached = not isinstance(data.index.root, Folder) or run.system.cache.folder
    cache = caches_of(run, data)[0] if cached and run.system.cache.bytes != 0 else None
    row = bench_batches(train_batches(run, data, 0, 1, say), cache)
    shown = {k: round(v, 1) if isinstance(v, float) else v for k, v in row.items()}
    print_json(row) if args.json else print_table([{"": k, "value": v} for k, v in shown.items()])
    return 0
