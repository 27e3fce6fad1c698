"""Recipes, models and keys as rows; a recipe with what differs from it."""

import argparse
from collections.abc import Callable
from typing import Any, get_args

from vtx_scale.checkpoints.format import steps
from vtx_scale.cluster.policy import admitted
from vtx_scale.data_pipeline.errors import NotShards, UserError
from vtx_scale.data_pipeline.objects import AnyPath
from vtx_scale.data_pipeline.paths import local_path
from vtx_scale.launch import decided, override, recipes, run_folder
from vtx_scale.launch.amendments import plan
from vtx_scale.launch.commands import run_of
from vtx_scale.launch.next_step import next_step, recipe_words
from vtx_scale.launch.paths import checkpoints_of
from vtx_scale.launch.places import shards_at
from vtx_scale.launch.tables import print_json, print_table
from vtx_scale.planner.stored import stored_counts
from vtx_scale.specs import walk
from vtx_scale.specs.comments import meanings
from vtx_scale.specs.models import published
from vtx_scale.specs.run import Run
from vtx_scale.trainer.output import say


def run(args: argparse.Namespace) -> int:
    if args.recipe.endswith(".py") and not (args.keys or args.smoke):
        return show_file(args)
    if (folder := run_folder.named(args.recipe)) is not None:
        return show_folder(args, folder)
    if args.recipe in LISTS:
        rows = LISTS[args.recipe]()
        if args.json:
            print_json(rows)
        else:
            print_table(rows)
        return 0

    spec = run_of(args, LISTS)
    refuse_raw(args.keys)
    changed = walk.differences(recipes.find(args.recipe, args.smoke), spec)
    worlds = admitted_worlds(spec)
    if args.json:
        print_json(
            {
                "recipe": override.to_dict(spec),
                "hash": override.recipe_hash(spec),
                "changed": {k: {"from": a, "to": b} for k, (a, b) in changed.items()},
                **({"worlds": worlds} if worlds else {}),
            }
        )
        return 0
    print_table(
        [
            {"key": k, "value": str(v), "": f"was {changed[k][0]}" if k in changed else ""}
            for k, v, _ in walk.walk(spec)
        ]
    )
    if worlds:
        print(f"admitted worlds: {', '.join(map(str, worlds))}")
    say("what a key means: vtx show keys")
    if any(key.startswith("data.shards=") for key in args.keys):
        next_step("train", *recipe_words(args.recipe, args.smoke, args.keys))
    return 0


def refuse_raw(keys: list[str]) -> None:
    """Raises UserError where a key gives, in the place of shards, what is there and are none."""
    for key in keys:
        name, _, value = key.partition("=")
        if name in ("data.shards", "data.val_shards"):
            try:
                shards_at(value)
            except NotShards:
                raise
            except UserError:
                continue  # it may be made yet, or lie on another machine


def admitted_worlds(run: Run) -> list[int]:
    """Those of a range that the strategy can run on; nothing where there is no range."""
    system = run.system
    if system.worlds is None or not isinstance(system.world, str):
        return []
    return admitted(*system.worlds, system.unit)


def show_folder(args: argparse.Namespace, folder: AnyPath) -> int:
    """The recipe of a run folder, and what was decided in it."""
    if args.keys or args.smoke:
        raise UserError(f"{folder} is a run: key=value and --smoke are of a recipe.")
    spec, made = run_folder.recipe_of(folder), decided.read(folder)
    at = max(steps(checkpoints_of(folder)), default=0)
    plan(spec, made)  # a decision that cannot be followed is said
    rows = [
        {"decision": d.name, "kind": d.kind, "step": d.step}
        | ({"key": d.key, "value": d.value} if d.key else {"position": d.position})
        for d in made
    ]
    if args.json:
        about = run_folder.read(folder)
        body = {"recipe": about["recipe"], "hash": about["hash"], "checkpoint": at}
        print_json({**body, "decisions": rows})
        return 0
    told: dict[str, list[str]] = {}
    for d in decided.amendments(made):
        told.setdefault(d.key, []).append(f"{d.value} from step {d.step}")
    keys = [
        {"key": k, "value": str(v), "": ", ".join(told.get(k, []))} for k, v, _ in walk.walk(spec)
    ]
    weights = told.get(override.WEIGHTS, [])
    more = [{"key": override.WEIGHTS, "value": "", "": ", ".join(weights)}] if weights else []
    print_table([*keys, *more])
    for d in made:
        if not d.key:
            print(f"decisions/{d.name}.json: back to step {d.step}, on at position {d.position}")
    print(f"newest checkpoint: step {at} of {spec.steps}")
    return 0


def show_file(args: argparse.Namespace) -> int:
    """The recipes of a stranger's file, and the models that its `published()`
    names, counted now.
    """
    path = local_path(args.recipe)
    module = recipes.module_of(path)
    rows = [
        recipe_row(f"{path}:{name}", function) for name, function in recipes.functions_of(module)
    ]
    models = []
    if hasattr(module, "published"):
        from vtx_scale.planner.count import macs, parameters  # torch, which no other listing needs

        models = [
            {
                "name": name,
                "parameters": parameters(spec),
                "macs": macs(spec),
                "resolution": spec.resolution,
            }
            for name, spec in module.published().items()
        ]
    if not rows and not models:
        raise UserError(
            f"{path} lists nothing: a recipe is a function annotated '-> Run' without arguments, "
            "and published() names models."
        )
    if args.json:
        print_json({"recipes": rows, "models": models})
    else:
        print_table(rows)
        print_table(models)
    return 0


def recipe_row(name: str, function: Callable[[], Run]) -> dict[str, Any]:
    return {
        "name": name,
        "objective": recipes.call_recipe(function, name).objective.title().lower(),
        "summary": recipes.summary(function),
    }


def recipe_rows() -> list[dict[str, Any]]:
    """Those for pictures of one's own first, for who reads from the top."""
    rows = [
        recipe_row(name, function)
        for name, function in recipes.named()
        if not name.endswith("_smoke")
    ]
    return sorted(rows, key=lambda row: not row["name"].endswith("_small"))


def model_rows() -> list[dict[str, Any]]:
    """The published models with their stored counts."""
    counts = stored_counts()
    if unknown := sorted(set(published()) - set(counts)):
        raise UserError(
            f"{', '.join(unknown)} has no stored count: run 'python -m vtx_scale.planner.count'."
        )
    return [
        {"name": name, **counts[name], "resolution": resolution}
        for name, (_, resolution) in published().items()
    ]


def key_rows() -> list[dict[str, Any]]:
    """Every key that some recipe has: its meaning, type and value in the first of these."""
    rows: dict[str, dict[str, Any]] = {}
    for _, function in recipes.named():
        run = function()
        meaning = meanings(run)
        for key, value, kind in walk.walk(run):
            named = (
                kind.__name__
                if isinstance(kind, type) and not get_args(kind)
                else str(kind).replace("typing.", "")
            )
            row = {"key": key, "meaning": meaning[key], "type": named, "example": str(value)}
            rows.setdefault(key, row)
    return [rows[k] for k in sorted(rows)]


LISTS = {"recipes": recipe_rows, "models": model_rows, "keys": key_rows}
