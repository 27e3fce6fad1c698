"""The newest checkpoint of a run in another library's layout, with all that its reader needs."""

import argparse
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.paths import local_path
from vtx_scale.data_pipeline.publish import whole_folder
from vtx_scale.data_pipeline.shards import read_whole
from vtx_scale.interop import beside, export
from vtx_scale.interop.card import Card, card
from vtx_scale.interop.files import refuse_taken
from vtx_scale.interop.programs import Takes, export_programs
from vtx_scale.interop.tokens import TextForm
from vtx_scale.interop.weights import tables
from vtx_scale.launch import run_folder
from vtx_scale.launch.datasets import local_classes
from vtx_scale.launch.hub import check_hub, push
from vtx_scale.launch.open_run import OpenRun, open_run
from vtx_scale.launch.opened import CLASSES
from vtx_scale.launch.places import shards_at
from vtx_scale.launch.reading import reading_of
from vtx_scale.launch.redact import redact
from vtx_scale.launch.run_reader import RunReader
from vtx_scale.specs.run import Run
from vtx_scale.trainer.output import say

# the type of the numbers that are written; None: as they were trained
WRITTEN = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp64": torch.float64,
}
PROGRAMS = ("torch_export", "onnx")


def run(args: argparse.Namespace) -> int:
    reading = reading_of(args.keys, known=("system.device", "system.precision"))
    out = local_path(args.out)
    refuse_taken(out)
    if args.push:
        check_hub(args.push)
    opened = open_run(args.folder, reading.device)
    if reading.precision in WRITTEN:
        opened.model.to(WRITTEN[reading.precision])
    for path in write(opened, args.to, out, not args.without_head, args.push):
        print(path)
    if not args.push:
        say(f"how to open it: {out / 'README.md'}")
    else:
        place = push(out, args.push, f"vtx export, step {opened.step}")
        print(f"{place} (a new one is private)")
    return 0


def write(opened: OpenRun, to: str, out: Path, head: bool = True, hub: str = "") -> list[Path]:
    """Write a run's weights as `to` opens them, or its probes as programs, with tokenizer, names of
    classes, recipe and page; the files. `out` appears when all of them are on the disk.

    head: with the classifier, where there is one. hub: the name that the page says. Raises
    UserError where there is no such export, or `out` is taken.
    """
    refuse_taken(out)
    model, data, spec = opened.model, opened.recipe.data, opened.recipe.objective
    with whole_folder(out.absolute()) as part:
        programs: dict[str, Takes] = {}
        if to in PROGRAMS:
            programs = export_programs(model, to, part)
        else:
            export(model, to, part, data.centre, data.bicubic, head)
        form = text_form(opened)
        if spec.vocabulary:
            beside.add_tokenizer(part, to, data.tokenizer, form, hub)
        classes = class_names(opened.recipe) if head else []
        if classes:
            beside.add_classes(part, to, classes)
        add_page(part, opened, to, hub or ".", classes, form, programs)
        names = sorted(p.name for p in part.iterdir())
    return [out / name for name in names]


def text_form(opened: OpenRun) -> TextForm | None:
    """How the run frames captions; None where its name tables do not say."""
    spec = opened.recipe.objective
    say = getattr(tables(spec.interop), "text_form", None) if spec.interop else None
    form: TextForm | None = say(spec) if say else None
    return form


def class_names(run: Run) -> list[str]:
    """Of the outputs of a run's classifier, from classes.txt beside its shards; none where there is
    no classifier, and, with a line on it, where there is no such list of that length.
    """
    counts = [getattr(net, "classes", 0) for net in run.objective.networks().values()]
    if not any(counts):
        return []
    data = run.data
    for shards in (data.val_shards, data.shards, *(source.shards for source in data.sources)):
        names = listed(shards) if shards else None
        if names is not None and len(names) == max(counts) == len(set(names)):
            return names
    say(f"vtx: no classes.txt with {max(counts)} names beside the shards: classes have numbers")
    return []


def listed(shards: str) -> list[str] | None:
    """The lines of classes.txt beside shards; None where there is none, or nobody can be asked."""
    try:
        found = shards_at(shards)
        if not found.remote:
            return local_classes(found)
        body = read_whole(found.root, CLASSES)
    except (UserError, OSError):
        return None
    return body.decode().splitlines() if body is not None else None


def add_page(
    part: Path,
    opened: OpenRun,
    to: str,
    where: str,
    classes: Iterable[str],
    form: TextForm | None,
    programs: dict[str, Takes],
) -> None:
    """recipe.json and README.md."""
    about = json.loads(redact(json.dumps(run_folder.read(opened.folder))))
    kept = {key: about[key] for key in ("recipe", "hash", "data", "versions") if key in about}
    beside.write_json(part / "recipe.json", {**kept, "step": opened.step})
    opens = beside.opens(part, to)
    name, options = beside.model_of(part) if opens and to == "transformers" else ("", "")
    page = Card(
        title=opened.recipe.objective.title(),
        to=to if opens else f"the names of {to}",
        where=where,
        model=name,
        options=options,
        step=opened.step,
        about=kept,
        figures=figures(opened),
        classes=tuple(classes),
        text=form,
        programs=programs,
    )
    (part / "README.md").write_text(card(page))


def figures(opened: OpenRun) -> dict[str, dict[str, Any]]:
    """Evaluator -> its newest numbers, and the step, up to the checkpoint's."""
    found: dict[str, dict[str, Any]] = {}
    for name, columns in RunReader(opened.folder).look().records.evaluations.items():
        steps = [step for step in columns.steps if step <= opened.step]
        if not steps:
            continue
        numbers = {key: columns.at(key, steps[-1]) for key in columns.values}
        found[name] = {k: v for k, v in numbers.items() if v is not None and math.isfinite(v)}
        found[name]["step"] = steps[-1]
    return found
