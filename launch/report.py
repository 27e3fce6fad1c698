"""`vtx report`: what a run's folder says, gathered for one page."""

import argparse
import json
import os
import re
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.objects import AnyPath
from vtx_scale.data_pipeline.paths import local_path
from vtx_scale.data_pipeline.publish import whole
from vtx_scale.launch import override, recipes
from vtx_scale.launch.places import place_at
from vtx_scale.launch.redact import shown
from vtx_scale.launch.report_charts import Shown
from vtx_scale.launch.report_page import page
from vtx_scale.launch.report_pictures import pictures
from vtx_scale.launch.run_reader import RunReader
from vtx_scale.launch.summary import Summary

RUNS = 4  # in one page
LETTERS = 400  # of a value


def run(args: argparse.Namespace) -> int:
    """Write the page. Raises UserError where there is no such run, or too many are given, and
    OSError where one cannot be read or the page cannot be written.
    """
    if len(args.folders) > RUNS:
        raise UserError(f"{len(args.folders)} runs are given: a page holds up to {RUNS}.")
    file = local_path(args.output, "-o ")
    if file.is_dir():
        raise UserError(f"-o {file} is a folder: give the name of a file, such as run.html.")
    looked = [(place, RunReader(place).look()) for place in map(place_at, args.folders)]
    for place, summary in looked:
        if not summary.about and not summary.fault:
            raise UserError(
                f"{place} is no run folder (no run.json in it): give the folder of 'vtx train "
                "--run'."
            )
    known = dict(named())
    runs = [
        gathered(place, summary, name, known)
        for (place, summary), name in zip(looked, names([s for _, s in looked]), strict=True)
    ]
    body = page(runs, metadata.version("vtx-scale"))
    with whole(file) as part:
        part.write_text(body, encoding="utf-8")
    print(file)
    return 0


def names(summaries: list[Summary]) -> list[str]:
    """Of the runs: their folders', told apart where those are the same."""
    short = [shown(os.path.basename(os.path.abspath(s.name)) or s.name, 80) for s in summaries]
    return [name if short.count(name) == 1 else f"{name} ({k + 1})" for k, name in enumerate(short)]


def gathered(
    place: AnyPath, summary: Summary, name: str, known: dict[str, dict[str, str]]
) -> Shown:
    """A run of the page. Raises OSError."""
    recipe = flat(summary.about.get("recipe", {}))
    nearest, differences = compared(recipe, known, name)
    found, left = pictures(place)
    return Shown(summary, name, recipe, nearest, differences, found, left)


def named() -> Iterator[tuple[str, dict[str, str]]]:
    """The recipes of the package, flat."""
    for name, function in recipes.named():
        yield name, flat(json.loads(json.dumps(override.to_dict(function()))))


def compared(
    recipe: dict[str, str], known: dict[str, dict[str, str]], name: str = ""
) -> tuple[str, dict[str, tuple[str, str]]]:
    """The recipe from which this one differs least, of the same objective, and key -> (its value,
    this one's). name: of the run; of equal recipes the one counts that has it.
    """
    kind = recipe.get("objective.spec")
    own = [name for name, other in known.items() if other.get("objective.spec") == kind]
    if kind is None or not own:
        return "", {}
    ways = {name: differ(written_then(known[name], recipe), recipe) for name in own}
    fewest = min(map(len, ways.values()))
    equal = sorted(name for name in own if len(ways[name]) == fewest)
    equal.sort(key=lambda other: other.removesuffix("_smoke") not in name)
    named_so = equal[0].removesuffix("_smoke") in name
    more = "" if named_so or len(equal) == 1 else f" (and {len(equal) - 1} equal)"
    return equal[0] + more, ways[equal[0]]


def written_then(known: dict[str, str], recipe: dict[str, str]) -> dict[str, str]:
    """A recipe without the fields that did not exist when a run was begun: they have their
    defaults there. Parts of lists are no such fields.
    """
    return {k: v for k, v in known.items() if k in recipe or re.search(r"\.\d+\.", k)}


def differ(a: dict[str, str], b: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Key -> (value in a, value in b)."""
    keys = dict.fromkeys([*b, *a])
    return {k: (a.get(k, "none"), b.get(k, "none")) for k in keys if a.get(k) != b.get(k)}


def flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Key -> value, as the command line names them; an empty list is one value."""
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list) and any(isinstance(part, dict) for part in value):
        parts = {str(k): part for k, part in enumerate(value)}.items()
    else:
        return {prefix: shown(text_of(value), LETTERS)}
    out: dict[str, str] = {}
    for key, part in parts:
        out |= flat(part, f"{prefix}.{key}" if prefix else str(key))
    return out


def text_of(value: Any) -> str:
    """A value of a recipe as it would be typed."""
    if isinstance(value, list):
        return ",".join(map(text_of, value))
    return value if isinstance(value, str) else json.dumps(value)
