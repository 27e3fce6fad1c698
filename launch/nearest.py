"""Wrong words led home: to a key of the recipe, to a value that it takes.

Standard library alone.
"""

import difflib
import math
import os
import re
import shlex
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin

from vtx_scale.launch.synonyms import KEYS, MEANT, PARTS, VALUES
from vtx_scale.specs.run import Run
from vtx_scale.specs.walk import walk

UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}


def plain(word: str) -> str:
    """A word as `synonyms` has it: no dashes or signs before it, `_` for `-` in it."""
    return word.lstrip("-+~@").lower().replace("-", "_").replace("/", ".").replace("__", ".")


def theirs(name: str, value: str) -> str:
    """The line of `synonyms` for a name with its value, "" without one. Of a name under a part of
    our recipes, such as data.sources.0.name, no option is meant.
    """
    first, _, rest = name.partition(".")
    last = rest.rpartition(".")[2] or first
    ours = bool(rest) and first in {f.name for f in fields(Run)}
    for word in (name, last):
        template = KEYS.get(f"{word}={value.lower()}") or KEYS.get(word, "")
        if template and not (ours and word != name and template.startswith("--")):
            return template
    return ""


def lacking(name: str, run: Run | None) -> str:
    """Why a recipe has no key under such a name: it has an empty list there; "" otherwise."""
    if run is not None and name.startswith("evaluate.") and not run.evaluate:
        return (
            "the recipe names no evaluator, and Run(evaluate=(Evaluation(name=...),)) in its file "
            "does"
        )
    if run is not None and name.startswith("data.sources.") and not run.data.sources:
        return (
            "the recipe is no mix, and Run(data=Data(sources=(Source(name=...),))) in its file is "
            "one"
        )
    return ""


def typed(name: str, value: str, run: Run | None) -> tuple[str, str]:
    """(what is typed here for a key of others, or a key that is nearly one of ours; why).

    name: as `plain` gives it. value: "" where there is none. Nothing is known of it where both are
    "", and nothing here does the same where only the first is. run: None where the recipe is not
    known.
    """
    kinds = {key: kind for key, _, kind in walk(run)} if run is not None else {}
    keys = list(kinds)
    if name in keys:
        return filled(f"{name}={{}}", value), ""
    if why := lacking(name, run):
        return "", why
    words, _, why = theirs(name, value).partition("| ")
    words = words.strip()
    if why and not words:
        return "", why
    if words == "init.from={}" and not (set("/.:") & set(value) or os.path.exists(value)):
        value = "FOLDER"  # names of published weights are none here
    if words and (found := in_keys(words, keys)):
        return ("", no) if (no := lacking(found, run)) else (filled(found, value), why)
    last = name.rpartition(".")[2]
    ends = [key for key in keys if key.endswith(f".{name}")] or [
        key for key in keys if key.endswith(f".{last}")
    ]
    if len(ends) > 1:
        return " or ".join(filled(f"{key}={{}}", value) for key in ends[:4]), ""
    near = ends or close(name, kinds)
    return (filled(f"{near[0]}={{}}", value), "") if near else ("", "")


def in_keys(words: str, keys: list[str]) -> str:
    """A template in which `*.name` is the first of these keys that ends so; "" without one."""
    if not words.startswith("*"):
        return words
    end = words.partition("=")[0][1:]
    found = next((key for key in keys if key.endswith(end)), "" if keys else f"objective{end}")
    return found and words.replace(f"*{end}", found, 1)


def close(name: str, kinds: dict[str, Any]) -> list[str]:
    """The key that is nearest, first of those beside it, at most one. kinds: the keys, and what
    they take.
    """
    head, dot, last = name.rpartition(".")
    beside = {
        key.removeprefix(f"{head}."): key for key in kinds if dot and key.startswith(f"{head}.")
    }
    ends = {key.rpartition(".")[2]: key for key in reversed(kinds)}
    for names, word in ((beside, last), ({key: key for key in kinds}, name), (ends, last)):
        for near in difflib.get_close_matches(word, names, 3, 0.7):
            if alike(last, names[near].rpartition(".")[2], kinds[names[near]]):
                return [names[near]]
    return []


def alike(word: str, key: str, kind: Any) -> bool:
    """Whether a word is a slip of a key's last part. Of a number by a letter in six: any other
    number would be taken by the key, whatever was meant.
    """
    if numeric(kind):
        return edits(word, key) <= max(1, max(len(word), len(key)) // 6)
    return difflib.SequenceMatcher(None, word, key).ratio() >= 0.6


def numeric(kind: Any) -> bool:
    """Whether a field takes numbers, one or several, or none in their place."""
    return kind in (int, float) or any(numeric(part) for part in get_args(kind))


def edits(a: str, b: str) -> int:
    """Letters that are lacking, too many, others, or in their neighbour's place."""
    rows = [list(range(len(b) + 1))]
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            row.append(min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (x != y)))
            if i > 1 and j > 1 and x == b[j - 2] and y == a[i - 2]:
                row[-1] = min(row[-1], rows[-2][j - 2] + 1)
        rows.append(row)
    return rows[-1][-1]


def filled(template: str, value: str) -> str:
    """A template with the value in it, in our words and as a shell takes it."""
    key = template.rpartition("={}")[0].rpartition(" ")[2]
    for ours, others in VALUES.get(key, {}).items():
        value = ours if value.lower() in others.split() else value
    for ours, others in MEANT.get(key, {}).items():
        value = ours if (value.lower() or "true") in others.split() else value
    if not value or shlex.quote(value) == value or "{}" not in template:
        return template.replace("{}", value or "VALUE")
    # a shell would read more than a word
    return " ".join(shlex.quote(word.replace("{}", value)) for word in template.split(" "))


def no_key(run: Run, key: str, value: str) -> str:
    """What to say of a key that is none."""
    found, why = typed(plain(key), value, run)
    if not found:
        why = why or "'vtx show keys' lists all of them"
        return f"{key}: there is no such key: {why}."
    last = found.partition("=")[0].rpartition(".")[2]
    nearest = "" if theirs(plain(key), value) else f"; nearest: {last}"
    return f"{key}: there is no such key{nearest}: give {found}{f' ({why})' if why else ''}."


def part_of(key: str, value: str) -> str:
    """What could be meant by a value for a whole part of the recipe, with commas around it."""
    template = PARTS.get(key, "")
    return f", such as {filled(template, value)}," if template else ""


def value_of(key: str, text: str, kind: Any) -> str:
    """ ": give KEY=VALUE" where a value that a field does not take can be led home, else ""."""
    found: str | None = None
    if get_origin(kind) is Literal:
        words = [str(word) for word in get_args(kind)]
        others = VALUES.get(key, {})
        found = next((w for w in words if text.lower() in others.get(w, "").split()), None)
        found = found or next(iter(difflib.get_close_matches(text.lower(), words, 1)), None)
    elif kind in (int, float):
        found = number_of(text, kind)
    return f": give {key}={found}" if found is not None else ""


def number_of(text: str, kind: type) -> str | None:
    """A number as a field takes it, of `1e5`, `10k`, `64.0` or `3e-4,`; None of what is none."""
    parts = re.fullmatch(r"([-+]?[\d.]+(?:e[-+]?\d+)?)\s*([kmgb]?)[,;]?", text.strip().lower())
    try:
        value = float(parts[1]) * UNITS.get(parts[2], 1) if parts else math.nan
    except ValueError:
        return None
    if not math.isfinite(value) or (kind is int and value != int(value)):
        return None
    return str(int(value)) if kind is int else f"{value:g}"
