"""`vtx data ...`: indexes, orders, checks and toy data."""

import argparse
from pathlib import Path

from vtx_scale.launch.commands import need_data, print_json, print_table, recipe_arguments, run_of

HELP = "index, order, verify and inspect shards; make toy shards, digits, a tokenizer or a palette"


def arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="what", metavar="WHAT", required=True)

    def command(name: str, help: str, function) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=help, description=help)
        made.set_defaults(do=function)
        return made

    p = command("index", "make or renew the index of shards", index)
    p.add_argument("shards")
    p.add_argument("--json", action="store_true")
    p = command("order", "which sample stands in which slot", order)
    recipe_arguments(p)
    p.add_argument("--world", type=int, default=1)
    p.add_argument("--steps", type=int, default=1)
    p.add_argument("--start", type=int, default=0)
    p.add_argument("--json", action="store_true")
    p = command("verify", "every bad sample, a line each; exit 1 where there is one", verify)
    p.add_argument("shards")
    p.add_argument("--json", action="store_true")
    p = command("inspect", "what shards hold", inspect)
    p.add_argument("shards")
    p.add_argument("--json", action="store_true")
    p = command("toy", "write shards of composed shapes", toy)
    p.add_argument("out", metavar="DIR")
    p.add_argument("--samples", type=int, default=256)
    p.add_argument("--shards", type=int, default=4)
    p.add_argument("--size", type=int, default=64, help="side of a picture in pixels")
    p.add_argument("--seed", type=int, default=0)
    p = command("digits", "write shards of scikit-learn's handwritten digits", digits)
    p.add_argument("out", metavar="DIR")
    p = command("tokenizer", "train a byte-level BPE on captions", tokenizer)
    p.add_argument("shards")
    p.add_argument("--out", metavar="FILE", help="default: tokenizer.json beside the shards")
    p.add_argument("--vocab", type=int, default=8192)
    p = command("palette", "find the colours of pictures, for iGPT", palette)
    p.add_argument("shards")
    p.add_argument("--out", metavar="FILE", help="default: palette.json beside the shards")
    p.add_argument("--colours", type=int, default=512)
    p.add_argument("--side", type=int, default=32, help="pictures are made so small before their colours are looked at")


def run(args: argparse.Namespace) -> int:
    return int(args.do(args) or 0)


def index(args: argparse.Namespace) -> int:
    from vtx_scale.data_pipeline.index import open_index

    made = open_index(args.shards, say=lambda line: print(line))
    row = {"shards": len(made.names), "samples": made.n, "chunks": len(made.chunk_bytes), "known_bad": len(made.bad),
           "digest": made.digest.hex()[:32], "file": str(made.file)}
    print_json(row) if args.json else print_table([{"": k, "value": v} for k, v in row.items()])
    return 0


def order(args: argparse.Namespace) -> int:
    from vtx_scale.data_pipeline.errors import UserError

    for name in ("world", "steps"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: give 1 or more.")
    if args.start < 0:
        raise UserError(f"--start {args.start}: give 0 or more.")
    recipe = run_of(args)
    need_data(recipe, args.recipe)
    from vtx_scale.data_pipeline.read import ChunkReader
    from vtx_scale.launch.build import open_data, order_of, resolve_shards

    data = open_data(resolve_shards(recipe), True)
    assert data is not None
    reader, made = ChunkReader(data.index), order_of(recipe, data.index)
    for step in range(args.start, args.start + args.steps):
        for rank in range(args.world):
            at = made.share(step, recipe.global_batch, rank, args.world)
            numbers = iter(made.ids(at[at >= 0]).tolist())
            ids = [reader.id(next(numbers)) if p >= 0 else None for p in at.tolist()]
            if args.json:
                print_json({"step": step, "rank": rank, "ids": ids})
            else:
                print(f"step {step} rank {rank}: " + " ".join(x or "-" for x in ids))
    return 0


def verify(args: argparse.Namespace) -> int:
    from vtx_scale.data_pipeline.tools.verify import verify as bad_samples

    bad = 0
    for row in bad_samples(args.shards):
        bad += 1
        print_json(row) if args.json else print(f"{row['shard']}/{row['key'] or '(the tar)'}: {row['reason']}")
    if not args.json:
        print(f"{bad} bad" if bad else "every sample is sound")
    return int(bad > 0)


def inspect(args: argparse.Namespace) -> int:
    from vtx_scale.data_pipeline.tools.inspect import inspect as look

    row = look(args.shards)
    print_json(row) if args.json else print_table([{"": k, "value": v} for k, v in row.items()])
    return 0


def toy(args: argparse.Namespace) -> int:
    from vtx_scale.data_pipeline.errors import UserError
    from vtx_scale.data_pipeline.tools.toy import make_toy

    if args.samples < 1 or args.shards < 1 or args.size < 8:
        raise UserError("--samples and --shards are 1 or more, --size 8 or more.")
    print(make_toy(Path(args.out), args.samples, args.shards, args.size, args.seed))
    return 0


def digits(args: argparse.Namespace) -> int:
    from vtx_scale.data_pipeline.tools.digits import make_digits

    print(make_digits(Path(args.out)))
    return 0


def tokenizer(args: argparse.Namespace) -> int:
    from vtx_scale.data_pipeline.storage import expand
    from vtx_scale.data_pipeline.tools.tokenizer import train_tokenizer

    out = Path(args.out) if args.out else expand(args.shards)[0].parent / "tokenizer.json"
    print(train_tokenizer(args.shards, out, args.vocab))
    return 0


def palette(args: argparse.Namespace) -> int:
    from vtx_scale.data_pipeline.errors import UserError
    from vtx_scale.data_pipeline.storage import expand, whole
    from vtx_scale.data_pipeline.tools.palette import find_palette
    from vtx_scale.objectives.palette import write_palette

    if args.colours < 2 or args.side < 2:
        raise UserError("--colours and --side are 2 or more.")
    out = Path(args.out) if args.out else expand(args.shards)[0].parent / "palette.json"
    text = write_palette(find_palette(args.shards, args.colours, args.side).tolist())
    with whole(out) as part:
        part.write_text(text)
    print(out)
    return 0
