"""`vtx data verify`, `inspect`, `stats`, `quarantine`: what shards hold, and what of it is bad."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from vtx_scale.data_pipeline.codes import coding_of
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.index import Index
from vtx_scale.data_pipeline.opening import open_index
from vtx_scale.data_pipeline.remote import named
from vtx_scale.data_pipeline.shards import Shards
from vtx_scale.data_pipeline.tools.inspect import inspect as inspect_shards
from vtx_scale.data_pipeline.tools.page import amount, page
from vtx_scale.data_pipeline.tools.quarantine import lift, put_in
from vtx_scale.data_pipeline.tools.stats import stats as stats_of
from vtx_scale.data_pipeline.tools.verify import verify as verify_shards
from vtx_scale.launch import recipes, run_folder
from vtx_scale.launch.build import reader_of
from vtx_scale.launch.checks import check
from vtx_scale.launch.class_counts import class_misfit, of_names
from vtx_scale.launch.commands import run_of
from vtx_scale.launch.datasets import local_classes
from vtx_scale.launch.few import Few
from vtx_scale.launch.next_step import next_step, training
from vtx_scale.launch.override import to_dict
from vtx_scale.launch.places import shards_at, storage_at
from vtx_scale.launch.pools import workers_of
from vtx_scale.launch.progress import progress
from vtx_scale.launch.recipe_page import recipe_page
from vtx_scale.launch.tables import print_json, print_table
from vtx_scale.specs.run import Run
from vtx_scale.trainer.output import say


def judge_of(args: argparse.Namespace) -> Run | None:
    """The recipe of --for, None without it. Raises UserError."""
    if args.recipe:
        recipe = run_of(args)
        check(recipe)
        return recipe
    if args.smoke or args.keys:
        raise UserError("--smoke and key=value are of a recipe: add --for RECIPE.")
    return None


def verify(args: argparse.Namespace) -> int:
    bad, reader, seed, few = 0, None, 0, Few(print)
    listed = shards_at(args.shards, say)
    if recipe := judge_of(args):
        names = 0 if listed.remote else of_names(local_classes(listed))
        if sentence := class_misfit(recipe, args.shards, names):
            say(sentence)
        reader, seed = reader_of(recipe, True, coded_shards(recipe, listed)), recipe.seed
    try:
        for row in verify_shards(listed, reader, seed, say, args.pool):
            bad += 1
            where = f"{row['shard']}/{row['key'] or '(the tar)'}"
            line = f"{where}: {row['reason']} {row['member']}".rstrip()
            if args.json:
                print_json(row)
            elif row["reason"] == "member_missing":  # a whole set may lack it
                few(f"{row['reason']} {row['member']}", line)
            else:
                print(line)
        if not args.json:
            few.end()
            print(f"{bad} bad" if bad else "every sample is sound")
            if recipe:
                recipe = replace(recipe, data=replace(recipe.data, shards=args.shards))
                keys = [f"data.shards={args.shards}", *args.keys]
                next_step(*training(recipe, args.recipe, args.smoke, keys, names))
    except BrokenPipeError:
        return 1  # a verdict that nobody has read to its end is no good one
    return int(bad > 0)


def coded_shards(recipe: Run, shards: Shards) -> bool:
    """Whether a recipe reads the codes in these shards, which hold no pictures."""
    if not type(recipe.objective).coded_by:
        return False
    return coding_of(shards.root, named(shards).names) is not None


def inspect(args: argparse.Namespace) -> int:
    if of_recipe(args):
        args.recipe = args.shards
        recipe = run_of(args)
        check(recipe)
        if not args.page:
            raise UserError(f"inspect {args.shards}: of a recipe there is a page, add --page FILE.")
        if recipe.data.shards == "required" and not recipe.data.sources:
            raise UserError(f"{args.recipe} {recipe.data.needs['shards']}")
    if args.page:
        folder, _, name = args.page.rpartition("/")
        text = recipe_page(recipe, args.recipe) if of_recipe(args) else page_of_shards(args)
        storage_at(folder or ("/" if args.page.startswith("/") else ".")).put(name, text.encode())
        print_json({"page": args.page}) if args.json else print(args.page)
        return 0
    row = inspect_shards(shards_at(args.shards))
    print_json(row) if args.json else print_table([{"": k, "value": v} for k, v in row.items()])
    return 0


def of_recipe(args: argparse.Namespace) -> bool:
    """Whether a recipe or a run stands in place of shards."""
    word: str = args.shards
    known = word in [name for name, _ in recipes.named()] and not Path(word).exists()
    file = word.endswith(".py") or ".py:" in word
    return bool(args.smoke or args.keys or known or file) or run_folder.named(word) is not None


def page_of_shards(args: argparse.Namespace) -> str:
    """The page of a set."""
    index, found = looked_at(args)
    return page(index, args.shards, found)


def stats(args: argparse.Namespace) -> int:
    """The numbers of the page: JSON, or the most important ones as a table."""
    _, found = looked_at(args)
    if args.json:
        print_json(found)
        return 0
    row = {k: found[k] for k in ("shards", "samples", "bytes", "sound")}
    row["duplicates"] = found["duplicates"]["pictures"]
    row |= {f"bad: {reason}": bad["count"] for reason, bad in found["bad"].items()}
    for name, values in found["histograms"].items():
        if total := sum(values["counts"]):
            mean = values["sum"] / total
            low, high = amount(values["min"]), amount(values["max"])
            row[name] = f"{low} to {high}, mean {amount(mean)}"
    print_table([{"": k, "value": v} for k, v in row.items()])
    return 0


def looked_at(args: argparse.Namespace) -> tuple[Index, dict[str, Any]]:
    """An index and what every sample of it holds."""
    index = open_index(shards_at(args.shards, say), say=say)
    with progress("shards", len(index.names)) as tick:
        return index, stats_of(index, workers_of(args, len(index.names)), tick)


def quarantine(args: argparse.Namespace) -> int:
    """Mask what a recipe cannot use, or nothing any more."""
    recipe = judge_of(args)
    if (recipe is None) == (not args.lift):
        raise UserError(
            "A recipe says what cannot be used: add --for RECIPE, or --lift and no recipe to mask "
            "none of these samples any more."
        )
    shards = shards_at(args.shards, say)
    index = open_index(shards, say=say)
    if recipe is None:
        row = {"lifted": lift(shards, index)}
    else:
        names = len(index.names)
        with progress("shards", names) as tick:
            new, passing = put_in(
                shards,
                index,
                reader_of(recipe, True, coded_shards(recipe, shards)),
                recipe.seed,
                to_dict(recipe),
                workers_of(args, names),
                tick,
            )
        for line in new:
            print_json(line) if args.json else print(f"{line['sample']}: {line['reason']}")
        for line in passing:
            say(f"{line['sample']} could not be judged: {line['reason']}")
        row = {"new": len(new), "quarantined": quarantined(index)}
    print_json(row) if args.json else print_table([{"": k, "value": v} for k, v in row.items()])
    return 0


def quarantined(index: Index) -> int:
    return sum(reason == "quarantined" for reason in index.bad.values())
