"""The command that comes next, ready to be pasted: what `vtx data build`, `verify`, `show` and
`train` say at their end to people. Standard library alone.
"""

import re
import shlex
from collections.abc import Iterable
from pathlib import Path

from vtx_scale.data_pipeline.errors import NotShards, UserError
from vtx_scale.data_pipeline.foreign import build_command
from vtx_scale.launch.class_counts import class_count, class_key
from vtx_scale.launch.places import cache_folder
from vtx_scale.specs.run import Run
from vtx_scale.trainer.output import say

CLASSES = "classes.txt"  # beside shards: the names of classes


def next_step(*words: str) -> None:
    """Say the command of these words."""
    say(f"next: {shlex.join(('vtx', *words))}")


def recipe_words(recipe: str, smoke: bool, keys: Iterable[str]) -> list[str]:
    """A recipe as a command names it."""
    return [recipe, *(["--smoke"] if smoke else []), *keys]


def fitting(captions: bool, labels: bool, classes: int) -> list[str]:
    """The words of a first recipe for some thousand pictures with captions, else with labels of so
    many classes, else alone.
    """
    if captions:
        return ["clip_small"]
    if labels:
        return ["vit_small", *([f"objective.net.classes={classes}"] if classes else [])]
    return ["dino_small"]


def training(run: Run, recipe: str, smoke: bool, keys: list[str], listed: int) -> list[str]:
    """The words of the command that trains a recipe on shards, with as many classes as are listed.

    run: the recipe. keys: those that were given, `data.shards` first. A validation set that lies
    beside the shards, as `vtx data build --val` puts it there, is taken.
    """
    found = list(keys)
    beside_it = beside(run.data.shards)
    if run.evaluate and not run.data.val_shards and not run.data.hold_out and holds_tars(beside_it):
        found.append(f"data.val_shards={beside_it}")
    if listed and class_count(run.objective):
        key = class_key(run.objective, listed)
        found = [x for x in found if x.partition("=")[0] != key.partition("=")[0]] + [key]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(recipe).stem)
    return ["train", recipe, *(["--smoke"] if smoke else []), "--run", f"runs/{name}", *found]


def beside(out: str) -> str:
    """Where the validation set of a set lies: its sibling, as shards/val of shards/train."""
    place = out.rstrip("/")
    stem = place.removesuffix("train")
    if stem != place and (not stem or stem[-1] in "/-_"):
        return f"{stem}val"
    return f"{place}-val"


def holds_tars(place: str) -> bool:
    """Whether a place is a folder here with tars in it."""
    return "://" not in place and any(Path(place).glob("*.tar"))


def scoring(run: Run) -> list[str]:
    """The words of the command that scores a run, its folder left out; none where the run has no
    samples for it. Captions without names of classes are scored by `retrieval`, not `zero_shot`.
    """
    data, names = run.data, [evaluation.name for evaluation in run.evaluate]
    if not names or not (data.val_shards or data.hold_out):
        return []
    place = Path(data.val_shards or data.shards)
    if "zero_shot" in names and place.is_dir() and not (place / CLASSES).is_file():
        others = [name for name in names if name not in ("zero_shot", "retrieval")]
        return ["evaluate", "--with", ",".join(["retrieval", *others])]
    return ["evaluate"]


def offer(fault: NotShards, run: Run, words: Iterable[str]) -> UserError:
    """The refusal of a training with both commands: that which makes shards, and this one with
    --yes.

    words: of the command, without `vtx`; none where it came from Python.
    """
    alone = not run.data.val_shards and not run.data.hold_out
    command = build_command(fault.source, *(["--val", "0.05"] if alone else []))
    if not (words := list(words)):
        return UserError(f"{fault.found}: '{command}' makes shards of it.")
    again = shlex.join(["vtx", *words, "--yes"])
    return UserError(
        f"{fault.found}: '{command}' makes shards of it, and '{again}' makes them in "
        f"{cache_folder()} and trains."
    )
