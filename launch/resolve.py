"""What a recipe leaves open, made definite before anything is built:
toy shards, pretrained parts, palettes.

No torch.

Paths become absolute; `data.shards=toy` becomes a folder of toy shards, made once in the cache; a
teacher or codec that is a run says its network; so does a start that a smoke size goes on from; a
palette's file becomes its colours.
"""

import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.objects import AnyPath
from vtx_scale.data_pipeline.paths import local_path
from vtx_scale.data_pipeline.text import tokenizer_file
from vtx_scale.launch import outside
from vtx_scale.launch.outside import TOKENIZER
from vtx_scale.launch.paths import absolute, absolute_path
from vtx_scale.launch.places import place_at
from vtx_scale.launch.pretrained import LEFT_OPEN, held, spec_at, wanted
from vtx_scale.launch.run_folder import outside_of, recipe_of
from vtx_scale.launch.toy_data import toy_run, toy_shards
from vtx_scale.specs.foreign.compare import DECIDED, applied, refuse, target
from vtx_scale.specs.objective import ObjectiveSpec, Pretrained
from vtx_scale.specs.palette import read_palette
from vtx_scale.specs.run import Run
from vtx_scale.trainer.output import silent

Say = Callable[[str], None]


def resolve_data(run: Run, say: Say = silent, folder: AnyPath | None = None) -> Run:
    """The run with nothing left open. folder: of the run, if it is there already."""
    run = resolve_tokenizer(absolute(run), folder)
    for part in run.objective.pretrained:
        run = resolve_pretrained(run, part, say, folder)
    run = resolve_foreign(resolve_start(run, say), say, folder)
    return absolute(resolve_shards(resolve_palette(run), say))


def resolve_tokenizer(run: Run, folder: AnyPath | None) -> Run:
    """A tokenizer whose file is gone is the copy that the run folder has of it."""
    if folder is None:
        return run
    known = outside_of(folder)
    if known.get(TOKENIZER, {}).get("path") != run.data.tokenizer:
        return run
    try:
        tokenizer_file(run.data.tokenizer)
    except UserError:
        return outside.held(run, folder, known)
    return run


def resolve_shards(run: Run, say: Say = silent) -> Run:
    """The same of the data alone."""
    data = run.data
    if "toy" not in ([s.shards for s in data.sources] or [data.shards]):
        return run
    train, val = toy_shards(say)
    beside = data.val_shards or ("" if data.hold_out else str(val))
    if not data.sources:
        return replace(run, data=replace(data, shards=str(train), val_shards=beside))
    sources = tuple(replace(s, shards=str(train)) if s.shards == "toy" else s for s in data.sources)
    return replace(run, data=replace(data, sources=sources, val_shards=beside))


def resolve_start(run: Run, say: Say) -> Run:
    """`init.from=smoke:RECIPE` is a tiny run of that recipe, made once in the cache."""
    kind, _, recipe = run.init.from_.partition(":")
    if kind != "smoke" or not recipe:
        return run
    return replace(run, init=replace(run.init, from_=str(toy_run(recipe, say))))


def resolve_foreign(run: Run, say: Say, begun: AnyPath | None) -> Run:
    """What no shape shows of foreign weights, such as heads and activations, is what the config
    beside `init.from` says. A run that has begun keeps it where the weights are gone.

    Raises UserError for a config that cannot be read, and for one of weights that no field of the
    recipe makes the same.
    """
    source = run.init.from_
    path = place_at(source) if source else None
    if not isinstance(path, Path) or (path / "run.json").is_file():
        return run
    started = begun is not None and (begun / "run.json").exists()
    if begun is not None and started and not path.exists():
        before = recipe_of(begun)
        same = before.init.from_ == absolute_path(source)
        return replace(run, objective=as_begun(run.objective, before.objective)) if same else run
    kept, label = run.init.head == "kept", f"init.from={source}"
    objective, lines = applied(path, run.objective, kept)
    spec, at = target(objective)
    if spec is not None and not started:
        refuse(path, spec, label, at, kept)
        for line in lines:
            say(f"{label}: {line}")
    return replace(run, objective=objective)


def as_begun(objective: ObjectiveSpec, before: ObjectiveSpec) -> ObjectiveSpec:
    """An objective with what a config beside weights had decided when its run began."""
    if type(before) is not type(objective):
        return objective
    changes: dict[str, object] = {}
    for name, network in objective.networks().items():
        there = before.networks().get(name)
        same = {f: getattr(there, f) for f in DECIDED if hasattr(there, f) and hasattr(network, f)}
        changes[name] = replace(network, **same)
    if "pixels" in {f.name for f in fields(objective)}:
        changes["pixels"] = before.pixels
    return replace(objective, **changes)


def resolve_pretrained(run: Run, part: Pretrained, say: Say, begun: AnyPath | None) -> Run:
    """`objective.PART` is the network that the run in `objective.PART_from` trained, or has as its
    own; left open it is that of `init.from`, where there is one; "smoke" is a tiny one made once in
    the cache.

    A run that has begun has it in its checkpoints, and goes on where the folder is gone.
    """
    objective = run.objective
    source = getattr(objective, part.source)
    if source in LEFT_OPEN and comes_with_start(run, part, begun):
        source = run.init.from_
    if source in ("", "required"):
        if source and run.init.from_ and place_at(run.init.from_).exists():
            raise UserError(
                f"init.from={run.init.from_} brings no {part.part}: "
                f"add objective.{part.source}=RUN."
            )
        return run
    folder = toy_run(part.smoke, say) if source == "smoke" else place_at(source)
    objective = replace(objective, **{part.source: str(folder)})
    # what the run of the part knows better
    known = {f.name for f in fields(objective)} & {part.part, f"{part.part}_pixels"}
    if (found := held(folder, objective, part)) is not None:
        there = {part.part: found.network, f"{part.part}_pixels": found.pixels}
        objective = replace(objective, **{name: there[name] for name in known})
    elif (theirs := spec_at(folder)) is not None:
        raise UserError(
            f"{folder} trained a {theirs.title()}, which is no {part.part}: give a run of a "
            f"{wanted(objective, part).title()}, as {part.smoke} trains one."
        )
    elif begun is not None and (begun / "run.json").exists():
        before = recipe_of(begun).objective
        if absolute_path(getattr(before, part.source, "")) == str(folder):
            objective = replace(objective, **{name: getattr(before, name) for name in known})
    return replace(run, objective=objective)


def comes_with_start(run: Run, part: Pretrained, begun: AnyPath | None) -> bool:
    """Whether a part that is left open is that of `init.from`, or was when the run began.

    Where the start is a network of the same kind, as a student is, it is not taken for the part.
    """
    start = run.init.from_
    found = held(place_at(start), run.objective, part) if start else None
    if found is not None:
        return found.prefix == f"{part.part}."
    if not start or begun is None or not (begun / "run.json").exists():
        return False
    return bool(getattr(recipe_of(begun).objective, part.source, "") == start)


def resolve_palette(run: Run) -> Run:
    """`objective.palette` that names a file becomes the colours in it,
    so that they count in the hash and not their path.
    """
    path = local_path(getattr(run.objective, "palette", ""), "objective.palette=")
    # no Path.is_file: colours in hexadecimal can be longer than any path, and raise
    if not os.path.isfile(path):
        return run
    return replace(run, objective=replace(run.objective, **{"palette": read_palette(path)}))
