"""The command that comes next, ready to be pasted: what `vtx data build`, `verify`, `show` and
`train` say at their end to people. Standard library alone.
"""

import shlex
from collections.abc import Iterable
from pathlib import Path

from vtx_scale.data_pipeline.errors import NotShards, UserError
from vtx_scale.data_pipeline.foreign import build_command
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
    """The words of a first recipe for data with captions, else labels of so many classes, else
    pictures alone: a smoke size.
    """
    if captions:
        return ["clip_vit_b32", "--smoke"]
    if labels:
        count = [f"objective.net.classes={classes}"] if classes else []
        return ["vit_s16_imagenet", "--smoke", *count]
    return ["dino_vit_s16", "--smoke"]


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
