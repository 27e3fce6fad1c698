"""Wrong words led home: to a key of the recipe, to a value that it takes.

Standard library alone.
"""

import difflib
import math
import re
import shlex
from typing import Any, Literal, get_args, get_origin

from vtx_scale.launch.synonyms import KEYS, PARTS, VALUES
from vtx_scale.specs.run import Run
from vtx_scale.specs.walk import walk

UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}


def keys_of(run: Run) -> list[str]:
    """Every key that a recipe takes."""
    return [key for key, _, _ in walk(run)]


def plain(word: str) -> str:
    """A word as `synonyms` has it: no dashes or signs before it, `_` for `-` in it."""
    return word.lstrip("-+~@").lower().replace("-", "_").replace("/", ".").replace("__", ".")


def typed(name: str, value: str, run: Run | None) -> tuple[str, str]:
    """(what is typed here for a key of others, or a key that is nearly one of ours; why).

    name: as `plain` gives it. value: "" where there is none. Nothing is known of it where both are
    "". run: None where the recipe is not known.
    """
    keys = keys_of(run) if run is not None else []
    if name in keys:
        return filled(f"{name}={{}}", value), ""
    last = name.rpartition(".")[2]
    template = KEYS.get(name) or KEYS.get(last, "")
    words, _, why = template.partition(" | ")
    if words and (found := in_keys(words, keys)):
        return filled(found, value), why
    ends = [key for key in keys if key.endswith(f".{name}")] or [
        key for key in keys if key.endswith(f".{last}")
    ]
    if len(ends) > 1:
        return " or ".join(filled(f"{key}={{}}", value) for key in ends[:4]), ""
    near = ends or close(name, keys)
    return (filled(f"{near[0]}={{}}", value), "") if near else ("", "")


def in_keys(words: str, keys: list[str]) -> str:
    """A template in which `*.name` is the first of these keys that ends so; "" without one."""
    if not words.startswith("*"):
        return words
    end = words.partition("=")[0][1:]
    found = next((key for key in keys if key.endswith(end)), "" if keys else f"objective{end}")
    return found and words.replace(f"*{end}", found, 1)


def close(name: str, keys: list[str]) -> list[str]:
    """The key that is nearest, first of those beside it, at most one."""
    head, dot, last = name.rpartition(".")
    beside = {
        key.removeprefix(f"{head}."): key for key in keys if dot and key.startswith(f"{head}.")
    }
    ends = {key.rpartition(".")[2]: key for key in reversed(keys)}
    for names, word in ((beside, last), ({key: key for key in keys}, name), (ends, last)):
        if near := difflib.get_close_matches(word, names, 1, 0.7):
            return [names[near[0]]]
    return []


def filled(template: str, value: str) -> str:
    """A template with the value in it, in our words and as a shell takes it."""
    key = template.partition("=")[0]
    for ours, theirs in VALUES.get(key, {}).items():
        value = ours if value.lower() in theirs.split() else value
    if not value or shlex.quote(value) == value or "{}" not in template:
        return template.replace("{}", value or "VALUE")
    # a shell would read more than a word
    return " ".join(shlex.quote(word.replace("{}", value)) for word in template.split(" "))


def no_key(run: Run, key: str, value: str) -> str:
    """What to say of a key that is none."""
    found, why = typed(plain(key), value, run)
    if not found:
        return f"{key}: there is no such key: 'vtx show keys' lists all of them."
    last = found.partition("=")[0].rpartition(".")[2].strip("'")
    nearest = "" if KEYS.get(plain(key)) else f"; nearest: {last}"
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
        theirs = VALUES.get(key, {})
        found = next((w for w in words if text.lower() in theirs.get(w, "").split()), None)
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
