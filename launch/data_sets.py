"""`vtx data build` and `vtx data repack`: sets of shards from what a user has."""

import argparse
from pathlib import Path

import PIL

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.foreign import PACKED, PICTURES
from vtx_scale.data_pipeline.opening import open_index
from vtx_scale.data_pipeline.paths import SCHEME
from vtx_scale.data_pipeline.remote import index_remote
from vtx_scale.data_pipeline.restarts import jpegtran, with_restarts
from vtx_scale.data_pipeline.shards import Shards
from vtx_scale.data_pipeline.tools.packing import Input, Line, pack
from vtx_scale.data_pipeline.tools.pictures import pictures_of
from vtx_scale.data_pipeline.tools.repack import archives, set_again, unpacked_set
from vtx_scale.data_pipeline.tools.shrink import Edit
from vtx_scale.data_pipeline.tools.tables import TABLES, Columns, tables
from vtx_scale.launch.places import shards_at, storage_at
from vtx_scale.launch.pools import workers_of
from vtx_scale.launch.progress import progress
from vtx_scale.launch.tables import print_json, print_table
from vtx_scale.trainer.output import say

SAMPLES = 5_000  # of a shard


def build(args: argparse.Namespace) -> int:
    """A set of a folder of pictures, of tables, or of what `repack` takes."""
    each = samples_of(args)
    columns = Columns(args.image, args.caption, args.label)
    root, name = parted(args.source, TABLES)
    if name:
        return written(args, tables(storage_at(root), [name], columns, each))
    if not is_folder(args.source):
        return written(args, shards_again(args, Edit(), {}))
    storage = storage_at(args.source)
    every = list(storage.list(""))
    if any("/" not in x and x.endswith((".tar", *PACKED)) for x in every):
        return written(args, shards_again(args, Edit(), {}))
    found = sorted(x for x in every if x.lower().endswith(TABLES))
    if found and not any(x.lower().endswith(PICTURES) for x in every):
        return written(args, tables(storage, found, columns, each))
    if found:
        say(f"{args.source}: pictures are taken, {found[0]} is not: give it as SOURCE to use it.")
    return written(args, pictures_of(storage, every, each))


def repack(args: argparse.Namespace) -> int:
    """A set from another one, or from compressed tars."""
    if args.short_side and args.short_side < 32:
        raise UserError(f"--short-side {args.short_side}: give 32 or more.")
    about: dict[str, str | int] = {}
    if args.short_side:
        about |= {"short_side": args.short_side, "pillow": PIL.__version__}
    if args.restarts:
        about |= {"restarts": jpegtran()}
    edit = Edit(args.short_side, with_restarts if args.restarts else None)
    return written(args, shards_again(args, edit, about))


def shards_again(args: argparse.Namespace, edit: Edit, about: dict[str, str | int]) -> Input:
    """The samples of a set or of compressed tars. Raises UserError where there are none."""
    root, pattern = parted(args.source, PACKED)
    if pattern or is_folder(args.source):
        storage = storage_at(root if pattern else args.source)
        plain = any("/" not in name and name.endswith(".tar") for name in storage.list(""))
        packed = [] if plain and not pattern else archives(storage, pattern)
        if packed:
            return unpacked_set(storage, packed, edit, about, args.samples or 0)
    index = open_index(shards_at(args.source, say), say=say, pool=args.pool)
    if not index.n:
        raise UserError(f"{args.source} holds no samples: 'vtx data verify' says more.")
    return set_again(index, edit, about, samples_of(args))


def is_folder(place: str) -> bool:
    """Whether a place is a folder: in a bucket what has not the name of a file."""
    if not SCHEME.match(place):
        return Path(place).is_dir()
    return not place.lower().endswith((".tar", *PACKED, *TABLES))


def parted(place: str, endings: tuple[str, ...]) -> tuple[str, str]:
    """(the folder, the last name) of a place whose name has such an ending, else ("", "")."""
    root, slash, name = place.rpartition("/")
    if not name.lower().endswith(endings) or is_folder(place):
        return "", ""
    return root or slash or ".", name


def samples_of(args: argparse.Namespace) -> int:
    """--samples, at least 1."""
    if args.samples is not None and args.samples < 1:
        raise UserError(f"--samples {args.samples}: give 1 or more.")
    return args.samples or SAMPLES


def written(args: argparse.Namespace, source: Input) -> int:
    """Write a set, and print what is left out and what it holds."""
    out = storage_at(args.out)

    def left_out(line: Line) -> None:
        if args.json:
            print_json(line)
        else:
            print(f"{line['row']}: {line['reason']} {line.get('detail', '')}".rstrip())

    def index() -> None:
        if SCHEME.match(args.out):
            index_remote(Shards(out, [], args.out, ""), say=say, pool=args.pool)
        else:
            open_index(args.out, say=say, pool=args.pool)

    workers = workers_of(args, source.count)
    with progress("shards", source.count) as tick:
        summary = pack(out, source, workers, index, left_out, tick)
    if args.json:
        print_json(summary)
    else:
        print_table([{"": k, "value": v} for k, v in summary.items()])
    return 0
