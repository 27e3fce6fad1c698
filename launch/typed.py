"""Wrong command lines led home: commands, options and words that `vtx` does not take, and what to
type in their place. Standard library alone.
"""

import argparse
import contextlib
import difflib
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.launch import recipes
from vtx_scale.launch.nearest import plain, typed
from vtx_scale.launch.synonyms import CHOICES, COMMANDS, FLAGS, KEYS, OPTIONS, WHYS
from vtx_scale.specs.run import Run

NUMBER = re.compile(r"-?\d[\d._]*(e-?\d+)?$")
RUNS = (
    "run",
    "run_folder",
    "folder",
    "checkpoint",
    "ckpt",
    "model",
    "model_path",
    "resume",
    "path",
)


@dataclass(frozen=True)
class Line:
    """A command line as far as it is understood. before: the words up to the command's own, rest:
    those behind. parser: of the command, which still wants one where `commands` is not empty.
    """

    parser: argparse.ArgumentParser
    before: list[str]
    rest: list[str]

    @property
    def commands(self) -> dict[str, argparse.ArgumentParser]:
        """Those that the next word may name."""
        actions = (a for a in self.parser._actions if isinstance(a, argparse._SubParsersAction))
        return {name: p for action in actions for name, p in action.choices.items()}

    @property
    def options(self) -> dict[str, argparse.Action]:
        return self.parser._option_string_actions

    @property
    def places(self) -> list[str]:
        """The words that it takes by their place."""
        return [a.dest for a in self.parser._actions if not a.option_strings]

    def takes(self, word: str) -> bool:
        """Whether an option is one, or the beginning of one."""
        name = word.partition("=")[0]
        long = name.startswith("--") and any(option.startswith(name) for option in self.options)
        return name in self.options or long or (name[:2] in self.options and name[1] != "-")


def line_of(top: argparse.ArgumentParser, argv: list[str]) -> Line:
    """Which command is meant. Raises UserError where a word in its place names none."""
    line = Line(top, ["vtx"], list(argv))
    while commands := line.commands:
        at = next((i for i, word in enumerate(line.rest) if not word.startswith("-")), None)
        if at is None:
            return line
        word = line.rest[at]
        if word not in commands:
            raise UserError(no_command(line, at))
        line = Line(commands[word], [*line.before, word], line.rest[:at] + line.rest[at + 1 :])
    return line


def no_command(line: Line, at: int) -> str:
    """What to say of a word that names no command."""
    word, rest = line.rest[at], line.rest[at + 1 :]
    wanted = " ".join([*line.before[1:], word])
    near = difflib.get_close_matches(word.lower(), line.commands, 1, 0.6)
    found = near[0] if near else ""
    if len(line.before) == 1:
        if not near:
            found = COMMANDS.get(word.lower(), "")
        if found in ("", "train", "show") and is_recipe(word):
            found, rest = "train", [word, *rest]
    elif not found and COMMANDS.get(word.lower(), "").startswith(line.before[-1]):
        found = COMMANDS[word.lower()].partition(" ")[2]
    if not found:
        return f"There is no command {wanted!r}: '{' '.join(line.before)} --help' lists them."
    words = [*line.before, *line.rest[:at], *found.split(), *rest]
    why = f" ({WHYS[word.lower()]})" if not near and word.lower() in WHYS else ""
    return f"There is no command {wanted!r}: did you mean '{shlex.join(words)}'{why}?"


def check(line: Line) -> None:
    """Raises UserError for options that a command does not take, naming what is typed here."""
    wrong = list(unknown(line))
    if not wrong:
        return
    names = " ".join(repr(word.partition("=")[0]) for word, _ in wrong)
    command = " ".join(line.before)
    homes = [home(line, word, value) for word, value in wrong]
    found: dict[str, str] = {}
    for (words, _), (_, value) in zip(homes, wrong, strict=True):
        key = words.partition("=")[0]
        if words and (value or key not in found):  # --model-ema beside --model-ema-decay 0.999
            found[key] = words
    whys = "; ".join(dict.fromkeys(why for _, why in homes if why))
    if not found:
        whys = whys or f"'{command} --help' shows what it takes"
        raise UserError(f"'{command}' does not take {names}: {whys}.")
    give = " ".join(dict.fromkeys(found.values()))
    raise UserError(
        f"'{command}' does not take {names}: give {give}{f' ({whys})' if whys else ''}."
    )


def unknown(line: Line) -> Iterator[tuple[str, str]]:
    """(an option as it was typed, the value meant for it or "") of those it does not take."""
    i, rest = 0, line.rest
    while i < len(rest) and rest[i] != "--":
        word = rest[i]
        i += 1
        if not word.startswith("-") or word == "-" or NUMBER.match(word):
            continue
        if line.takes(word):
            action = line.options.get(word)
            i += action is not None and action.nargs is None and "=" not in word
            continue
        name, equals, value = word.partition("=")
        if not equals:
            flag = plain(name) in FLAGS
            while i < len(rest) and is_value(rest[i], bool(value), flag):
                value, i = f"{value},{rest[i]}" if value else rest[i], i + 1
        yield word, value


def is_value(word: str, more: bool, flag: bool) -> bool:
    """Whether a word belongs to the option before it. more: behind a first one. flag: of an option
    that others give no value.
    """
    if NUMBER.match(word):
        return True
    if more or word.startswith("-") or "=" in word:
        return False
    return word.lower() in ("true", "false") if flag else not is_recipe(word)


def is_recipe(word: str) -> bool:
    """Whether a word names a recipe."""
    if ".py" in word:
        return word.rpartition(":")[0].endswith(".py") or word.endswith(".py")
    return word in dict(recipes.named())


def recipe_word(words: list[str]) -> str:
    """The first of some words that names a recipe, "" without one."""
    return next(
        (w for w in words if w and not w.startswith("-") and "=" not in w and is_recipe(w)), ""
    )


def recipe_in(line: Line) -> Run | None:
    """The recipe that a command line names, where it can be had."""
    if word := recipe_word(line.rest):
        with contextlib.suppress(UserError):
            return recipes.find(word, "--smoke" in line.rest)
    return None


def home(line: Line, word: str, value: str) -> tuple[str, str]:
    """(what to type in place of an option with its value, why); nothing where that is not known."""
    name, command = plain(word.partition("=")[0]), " ".join(line.before)
    options = [option for option in line.options if option.startswith("--")]
    ours = {plain(option): option for option in options}
    if "keys" in line.places and "recipe" in line.places:
        run = recipe_in(line)
        if name in ours:  # with one dash
            return option_of(line, ours[name], value), ""
        found, why = typed(name, value, run)
        if found == "'vtx train RECIPE'" and (word := recipe_word([value, *line.rest])):
            return word, why
        if found == "--smoke" and found in line.rest:
            return "steps=1", "'vtx show' trains nothing at all"
        if found.startswith(f"{name}="):
            why = "keys have no dashes here"
        if (found or why) and (not found.startswith("--") or found.split()[0] in options):
            return found, why
    elif name in RUNS and {"folder", "folders"} & set(line.places):
        return f"{command} {value or 'RUN'}", "the run folder has no option"
    elif KEYS.get(name, "").startswith("--run ") and "out" in line.places:
        return f"{value or 'DIR'}", "where it goes has no option"
    if (to := OPTIONS.get(name)) in ours:
        return option_of(line, ours[to], CHOICES.get(value.lower(), value)), ""
    if near := difflib.get_close_matches(name, ours, 1, 0.6):
        return option_of(line, ours[near[0]], value), ""
    return "", ""


def option_of(line: Line, option: str, value: str) -> str:
    """An option as it is typed."""
    takes = line.options[option].nargs is None
    return f"{option} {value or 'VALUE'}" if takes else option


def no_equals(words: list[str], run: Run | None) -> str:
    """What to say of words in the place of key=value. words: that one, and those behind it."""
    word, *rest = words
    key, colon, value = word.partition(":")
    if not value and rest and "=" not in rest[0]:
        value = rest[0]
    found, why = typed(plain(key), value.strip(), run)
    if not found:
        why = why or "'vtx show keys' lists the keys"
        return f"{word!r} is not key=value: {why}."
    return f"{word!r} is not key=value: give {found}{f' ({why})' if why else ''}."


def no_choice(message: str) -> str:
    """A message of argparse's, with the choice that could be meant."""
    found = re.search(r"argument (\S+?)[:/].*invalid choice: '(.*?)' \(choose from (.*)\)", message)
    if found is None:
        return message
    choices = [choice.strip(" '") for choice in found[3].split(",")]
    near = CHOICES.get(found[2].lower(), "")
    if near not in choices:
        near = next(iter(difflib.get_close_matches(found[2], choices, 1, 0.5)), "")
    where = "" if not near else f", did you mean {found[1]} {near}"
    return f"argument {found[1]}: {found[2]!r} is none of {', '.join(choices)}{where}"
