"""`vtx data build` and `vtx data repack`: sets of shards from what a user has."""

import argparse
import shlex

import PIL

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.foreign import PACKED
from vtx_scale.data_pipeline.opening import open_index
from vtx_scale.data_pipeline.paths import SCHEME
from vtx_scale.data_pipeline.remote import index_remote
from vtx_scale.data_pipeline.restarts import jpegtran, with_restarts
from vtx_scale.data_pipeline.shards import Shards
from vtx_scale.data_pipeline.tools.columns import Columns
from vtx_scale.data_pipeline.tools.packing import Input, Line, pack
from vtx_scale.data_pipeline.tools.repack import archives, set_again, unpacked_set
from vtx_scale.data_pipeline.tools.shrink import Edit
from vtx_scale.launch.few import Few
from vtx_scale.launch.next_step import beside, fitting, next_step
from vtx_scale.launch.places import shards_at, storage_at
from vtx_scale.launch.pools import workers_of
from vtx_scale.launch.progress import progress
from vtx_scale.launch.raw_sets import SAMPLES, Asked, inputs, is_folder, parted
from vtx_scale.launch.tables import print_json, print_table
from vtx_scale.trainer.output import say


def build(args: argparse.Namespace) -> int:
    """A set of a folder of pictures, of tables, of a data set of Hugging Face's, or of what
    `repack` takes; with --val its validation set too.
    """
    columns = Columns(args.image, args.caption, args.label)
    asked = Asked(columns, args.split, args.val, samples_of(args))
    sets = inputs(args.source, asked, say)
    if sets is None:
        if args.val or args.split:
            raise UserError(
                f"{args.source} are shards, which are not split: data.hold_out=0.05 keeps a share "
                "for validation."
            )
        return written(args, shards_again(args, Edit(), {}), args.out)
    places = {"train": args.out, "val": beside(args.out)}
    if not args.json:
        say(sets[-1][1].guess)
    for name, source in sets:
        written(args, source, places[name], named=len(sets) > 1)
    if warning := sets[-1][1].warning:
        say(warning)
    if not args.json:
        keys = [f"data.val_shards={places['val']}"] if len(sets) > 1 else []
        say(shlex.join([f"data.shards={args.out}", *keys]))
        recipe, *classes = fitting(*sets[-1][1].holds)
        next_step("data", "verify", args.out, "--for", recipe, *keys, *classes)
    return 0


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
    return written(args, shards_again(args, edit, about), args.out)


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


def samples_of(args: argparse.Namespace) -> int:
    """--samples, at least 1."""
    if args.samples is not None and args.samples < 1:
        raise UserError(f"--samples {args.samples}: give 1 or more.")
    return args.samples or SAMPLES


def line_of(line: Line) -> str:
    """A row that is left out, for people."""
    return f"{line['row']}: {line['reason']} {line.get('detail', '')}".rstrip()


def written(args: argparse.Namespace, source: Input, place: str, named: bool = False) -> int:
    """Write a set to a place, and print what is left out and what it holds.

    named: the place too, where several are written.
    """
    out, few = storage_at(place), Few(print)

    def left_out(line: Line) -> None:
        if args.json:
            print_json(line)
        else:
            few(line["reason"], line_of(line))

    def index() -> None:
        if SCHEME.match(place):
            index_remote(Shards(out, [], place, ""), say=say, pool=args.pool)
        else:
            open_index(place, say=say, pool=args.pool)

    workers = workers_of(args, source.count)
    with progress("shards", source.count) as tick:
        try:
            summary = pack(out, source, workers, index, left_out, tick)
        finally:
            few.end()
            if few.counts["path"] and "tables" in source.about:
                print("paths are relative to the table's folder, or begin with /")
    if named:
        summary = {"out": place, **summary}
    if args.json:
        print_json(summary)
    else:
        print_table([{"": k, "value": v} for k, v in summary.items()])
    return 0
