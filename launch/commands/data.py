"""`vtx data ...`: indexes, orders, checks and toy data."""

import argparse
from collections.abc import Callable

from vtx_scale.launch.commands import recipe_arguments

HELP = "build, index, check, look at, encode, warm and bench shards; toys, tokenizers, palettes"
WORKERS = "processes (as many as processors)"


def arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="what", metavar="WHAT", required=True)

    def command(name: str, help: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=help, description=help)

    looking(command)
    packing(command)
    making(command)
    running(command)
    encoding(command("encode", "write the codes that a trained dVAE gives pictures, for DALL-E"))


def looking(command: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """Commands on shards that are there."""
    p = command("index", "make or renew the index of shards")
    p.add_argument("shards")
    p.add_argument(
        "--cache",
        action="store_true",
        help="of shards in a bucket: keep it in this user's cache, not beside them",
    )
    p.add_argument(
        "--hold-out",
        dest="hold_out",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="find the samples that data.hold_out=SHARE holds out, too",
    )
    cluster_arguments(p)
    p.add_argument("--json", action="store_true")
    p = command("order", "which sample stands in which slot")
    recipe_arguments(p)
    p.add_argument("--world", type=int, default=1)
    p.add_argument("--steps", type=int, default=1)
    p.add_argument("--start", type=int, default=0)
    p.add_argument("--json", action="store_true")
    p = command("verify", "every bad sample, a line each; exit 1 where there is one")
    p.add_argument("shards")
    judging_arguments(p)
    cluster_arguments(p)
    p.add_argument("--json", action="store_true")
    p = command("inspect", "what shards hold, or what a recipe makes of its samples")
    p.add_argument("shards", metavar="shards|recipe")
    p.add_argument("--page", metavar="FILE", help="look at every sample and write a page of HTML")
    p.add_argument("--smoke", action="store_true", help="the tiny sibling of the recipe")
    p.add_argument("keys", nargs="*", metavar="key=value", help="change any field of the recipe")
    p.add_argument("--workers", type=int, default=0, help=WORKERS)
    p.add_argument("--json", action="store_true")
    p = command("stats", "look at every sample: the numbers of the page")
    p.add_argument("shards")
    p.add_argument("--workers", type=int, default=0, help=WORKERS)
    p.add_argument("--json", action="store_true")


def packing(command: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """Commands that make a set of another thing, or mask a part of it."""
    p = command("build", "shards of pictures, a table, a data set of Hugging Face's or shards")
    p.add_argument(
        "source",
        metavar="SOURCE",
        help="a folder of pictures, of tables or of save_to_disk, a .csv, .tsv or .parquet, "
        "hf:NAME of the hub, or shards",
    )
    writing_arguments(p)
    p.add_argument("--image", metavar="COLUMN", default="", help="of paths, file URLs or bytes")
    p.add_argument("--caption", metavar="COLUMN", default="")
    p.add_argument("--label", metavar="COLUMN", default="")
    p.add_argument("--split", metavar="NAME", default="", help="of a data set (train)")
    p.add_argument(
        "--val",
        metavar="SHARE",
        default="",
        help="0.05: so many of the rows, by a hash of the picture, or a split: to a folder beside "
        "OUT",
    )
    p = command("repack", "shards, or compressed ones, as others")
    p.add_argument("source", metavar="SHARDS")
    writing_arguments(p)
    p.add_argument(
        "--short-side", type=int, default=0, metavar="PIXELS", help="make larger pictures so small"
    )
    p.add_argument(
        "--restarts",
        action="store_true",
        help="write JPEGs so that a crop is decoded without the rest; needs jpegtran",
    )
    p = command("quarantine", "mask from now on what a recipe cannot use")
    p.add_argument("shards")
    judging_arguments(p)
    p.add_argument("--lift", action="store_true", help="mask none of these any more")
    p.add_argument("--workers", type=int, default=0, help=WORKERS)
    p.add_argument("--json", action="store_true")


def making(command: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """Commands that write shards and files."""
    p = command("toy", "write shards of composed shapes")
    p.add_argument("out", metavar="DIR")
    p.add_argument("--samples", type=int, default=256)
    p.add_argument("--shards", type=int, default=4)
    p.add_argument("--size", type=int, default=64, help="side of a picture in pixels")
    p.add_argument("--seed", type=int, default=0)
    p = command("digits", "write shards of scikit-learn's handwritten digits")
    p.add_argument("out", metavar="DIR")
    p = command("tokenizer", "train a byte-level BPE on captions")
    p.add_argument("shards")
    p.add_argument("--out", metavar="FILE", help="default: tokenizer.json beside the shards")
    p.add_argument("--vocab", type=int, default=8192)
    p.add_argument(
        "--caption", metavar="PLACE", default="", help="where they stand, as data.caption says it"
    )
    p = command("palette", "find the colours of pictures, for iGPT")
    p.add_argument("shards")
    p.add_argument("--out", metavar="FILE", help="default: palette.json beside the shards")
    p.add_argument("--colours", type=int, default=512)
    p.add_argument(
        "--side",
        type=int,
        default=32,
        help="pictures are made so small before their colours are looked at",
    )


def running(command: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """Commands on the data of a recipe as a run reads it."""
    p = command("warm", "fill this node's cache with what the first steps of a recipe need")
    recipe_arguments(p)
    p.add_argument("--world", type=int, default=1)
    p.add_argument("--steps", type=int, default=1)
    p.add_argument("--start", type=int, default=0)
    p.add_argument(
        "--ranks", metavar="A-B", default="", help="those of this node, as 0-7; default: all"
    )
    p.add_argument("--json", action="store_true")
    p = command("bench", "samples a CPU-second, fetch and cache rates, and what bounds them")
    recipe_arguments(p)
    p.add_argument("--json", action="store_true")


def encoding(p: argparse.ArgumentParser) -> None:
    """Of `vtx data encode`."""
    p.add_argument("folder", metavar="RUN", help="a run folder of dvae_dalle")
    p.add_argument("shards")
    p.add_argument(
        "out",
        metavar="OUT",
        help="a folder or s3://bucket/prefix; an encoding that ended there goes on",
    )
    p.add_argument("--views", type=int, default=1, help="crops of a picture, of which a run draws")
    p.add_argument(
        "--for",
        dest="recipe",
        metavar="RECIPE",
        default="dalle_12b",
        help="take the training crops of this recipe (dalle_12b)",
    )
    p.add_argument(
        "keys",
        nargs="*",
        metavar="key=value",
        help="data.zoom=1,1.2: other crops; seed=1; system.device=cuda, system.precision=bf16",
    )
    p.set_defaults(smoke=False)
    cluster_arguments(p)
    p.add_argument("--json", action="store_true")


def cluster_arguments(p: argparse.ArgumentParser) -> None:
    """What a command takes whose work a cluster can do."""
    p.add_argument(
        "--address",
        default="",
        help="HOST:PORT of a Ray cluster's head, or auto, on a machine of that cluster: a shard a "
        "task of it (default: this machine alone)",
    )


def judging_arguments(p: argparse.ArgumentParser) -> None:
    """What a command takes that lets a recipe judge."""
    p.add_argument(
        "--for",
        dest="recipe",
        metavar="RECIPE",
        default="",
        help="judge as the reader of this recipe does; it may be changed by key=value",
    )
    p.add_argument("--smoke", action="store_true", help="the tiny sibling of the recipe")
    p.add_argument("keys", nargs="*", metavar="key=value", help="change any field of the recipe")


def writing_arguments(p: argparse.ArgumentParser) -> None:
    """What a command takes that writes a set."""
    p.add_argument("out", metavar="OUT")
    p.add_argument("--samples", type=int, help="of a shard (5,000)")
    cluster_arguments(p)
    p.add_argument(
        "--workers", type=int, default=0, help=f"{WORKERS}, or tasks at once under --address"
    )
    p.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    from vtx_scale.launch.data import run

    return run(args)
