"""The work of `vtx data ...`, a function each."""

import argparse
from pathlib import Path

from vtx_scale.data_pipeline import hold_out
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.opening import open_index
from vtx_scale.data_pipeline.paths import local_path
from vtx_scale.data_pipeline.remote import index_remote
from vtx_scale.data_pipeline.sources import Samples
from vtx_scale.data_pipeline.storage import whole
from vtx_scale.data_pipeline.tools.digits import make_digits
from vtx_scale.data_pipeline.tools.palette import find_palette
from vtx_scale.data_pipeline.tools.tokenizer import train_tokenizer
from vtx_scale.data_pipeline.tools.toy import make_toy
from vtx_scale.launch.commands import run_of
from vtx_scale.launch.data_looks import inspect, quarantine, stats, verify
from vtx_scale.launch.data_sets import build, repack
from vtx_scale.launch.datasets import order_of, training_data
from vtx_scale.launch.encode import run as encode
from vtx_scale.launch.places import shards_at
from vtx_scale.launch.pools import pool_of
from vtx_scale.launch.resolve import resolve_shards
from vtx_scale.launch.tables import print_json, print_table
from vtx_scale.launch.warming import bench, warm
from vtx_scale.specs.palette import write_palette
from vtx_scale.trainer.output import say


def run(args: argparse.Namespace) -> int:
    """The function that the command names."""
    work = {
        "index": index,
        "order": order,
        "build": build,
        "repack": repack,
        "verify": verify,
        "warm": warm,
        "bench": bench,
        "inspect": inspect,
        "stats": stats,
        "quarantine": quarantine,
        "toy": toy,
        "digits": digits,
        "tokenizer": tokenizer,
        "palette": palette,
        "encode": encode,
    }
    with pool_of(args) as args.pool:
        return work[args.what](args)


def index(args: argparse.Namespace) -> int:
    if not 0 <= args.hold_out < 1:
        raise UserError(f"--hold-out {args.hold_out}: give a share below 1.")
    listed = shards_at(args.shards, say)
    if listed.remote:
        words = hold_out.Words()
        opened = index_remote(listed, cache=args.cache, say=say, key=words, pool=args.pool)
        if args.hold_out and opened.n:
            hold_out.store(opened, args.hold_out, words.mask(args.hold_out))
    else:
        opened = open_index(listed, say=say, pool=args.pool)
        if args.hold_out and opened.n:
            hold_out.split(opened, args.hold_out)
    row = {
        "shards": len(opened.names),
        "samples": opened.n,
        "chunks": len(opened.chunk_bytes),
        "known_bad": len(opened.bad),
        "digest": opened.digest.hex()[:32],
        "file": str(opened.file),
    }
    print_json(row) if args.json else print_table([{"": k, "value": v} for k, v in row.items()])
    return 0


def order(args: argparse.Namespace) -> int:
    for name in ("world", "steps"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: give 1 or more.")
    if args.start < 0:
        raise UserError(f"--start {args.start}: give 0 or more.")
    recipe = run_of(args)
    if recipe.data.shards == "required" and not recipe.data.sources:
        raise UserError(f"{args.recipe} {recipe.data.needs['shards']}")
    data = training_data(resolve_shards(recipe))
    reader, sequence = Samples(data.indexes, data.names), order_of(recipe, *data.indexes)
    for step in range(args.start, args.start + args.steps):
        for rank in range(args.world):
            at = sequence.share(step, recipe.global_batch, rank, args.world)
            numbers = iter(sequence.ids(at[at >= 0]).tolist())
            ids = [reader.id(next(numbers)) if p >= 0 else None for p in at.tolist()]
            if args.json:
                print_json({"step": step, "rank": rank, "ids": ids})
            else:
                print(f"step {step} rank {rank}: " + " ".join(x or "-" for x in ids))
    return 0


def toy(args: argparse.Namespace) -> int:
    if args.samples < 1 or args.shards < 1 or args.size < 8:
        raise UserError("--samples and --shards are 1 or more, --size 8 or more.")
    print(make_toy(local_path(args.out), args.samples, args.shards, args.size, args.seed))
    return 0


def digits(args: argparse.Namespace) -> int:
    print(make_digits(local_path(args.out)))
    return 0


def out_of(args: argparse.Namespace, name: str) -> Path:
    """--out, else a file beside the shards."""
    if args.out:
        return local_path(args.out, "--out ")
    listed = shards_at(args.shards)
    if listed.remote:
        raise UserError(f"{args.shards}: add --out FILE, nothing is written beside these shards.")
    return listed.local(listed.names[0]).parent / name


def tokenizer(args: argparse.Namespace) -> int:
    out = out_of(args, "tokenizer.json")
    print(train_tokenizer(shards_at(args.shards), out, args.vocab, args.caption))
    return 0


def palette(args: argparse.Namespace) -> int:
    if args.colours < 2 or args.side < 2:
        raise UserError("--colours and --side are 2 or more.")
    out = out_of(args, "palette.json")
    text = write_palette(find_palette(shards_at(args.shards), args.colours, args.side).tolist())
    with whole(out) as part:
        part.write_text(text)
    print(out)
    return 0
