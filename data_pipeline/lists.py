"""Shard lists as people write them: which files they mean, and what they leave out.

Reading order: `expand` reads a list, `parts` takes it apart, `braces` and `matches` read a
pattern, `in_folder` a folder; `left_out` and `gaps` make the sentences on the rest.
"""

import os
import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from itertools import islice
from pathlib import Path

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.foreign import (
    PACKED,
    TABLES,
    buildable,
    counted,
    entries,
    inside,
    instead,
    not_a_tar,
    subfolders,
)
from vtx_scale.data_pipeline.tar import BLOCK

NAMES_LIMIT = 1_000_000
PATH_LIMIT = 4096

SPAN = re.compile(r"(\d{1,18}|[A-Za-z])\.\.(\d{1,18}|[A-Za-z])(?:\.\.(\d{1,9}))?").fullmatch
AT_ROOT = re.compile(r"\s*[/~]").match
MAGIC = re.compile(r"[*?[]").search
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(?!:)").match
# the name of a tar, compressed, half fetched or not, up to its suffix
TARRED = re.compile(r"(.*?)\.(?:tar|tgz|tbz2?|txz|tzst)(?:\.|$)", re.IGNORECASE).match
UNFINISHED = (
    *(".part", ".partial", ".filepart", ".aria2", ".incomplete", ".tmp", ".temp"),
    *(".crdownload", ".download", ".!qB"),
)


@dataclass(frozen=True)
class Look:
    """Shards that a folder or a glob gave, by the last name of the pattern.

    deep: a folder, where one may expect those in its subfolders too.
    """

    found: list[Path]
    pattern: str
    deep: bool = False


def expand(shards: str, say: Callable[[str], None] = lambda line: None) -> list[Path]:
    """The files that a user means by a folder (its *.tar), a brace pattern, a glob,
    or a list of these apart by commas or `::`.

    say: takes a sentence on what a folder or a glob leaves out. Raises UserError, naming what is
    missing, where nothing or not everything is there.
    """
    found: list[Path] = []
    looks: list[Look] = []
    for part in parts(shards):
        if not part or "\0" in part or "\n" in part:
            raise UserError(
                f"{shards!r} has an empty or unprintable name of a shard: "
                "give a folder, pattern or list."
            )
        refuse_scheme(part)
        found += files(part, looks)
    found = [p.absolute() for p in found]
    refuse_doubled(found)
    taken = set(found)
    for look in looks:
        for note in notes_on(look, taken):
            say(note)
    return found


def refuse_doubled(found: list[Path]) -> None:
    """Raises UserError for a file that is there twice, by one name or by two."""
    real = cache(os.path.realpath)
    known: dict[str, Path] = {}
    for path in found:
        at = os.path.join(real(path.parent), path.name)
        at = real(at) if os.path.islink(at) else at
        other = known.setdefault(at, path)
        if other is path:
            continue
        if other == path:
            raise UserError(f"{path} is named twice: give each shard once.")
        raise UserError(f"{other} is named twice, also as {path}: give each shard once.")


def refuse_scheme(part: str) -> None:
    """Raises UserError for a name with a scheme; what is there may hold a colon in its name."""
    scheme = SCHEME(part)
    if not scheme:
        return
    if part[scheme.end() : scheme.end() + 2] != "//" and begins(Names(), scheme[0]):
        return
    if scheme[1].lower() == "hf":
        raise buildable(f"{part} is a data set of Hugging Face's hub and no tar", part)
    if scheme[1].lower() == "s3":
        raise UserError(
            f"{part}: shards in a bucket are given to the commands of vtx and to recipes alone: "
            "copy them to a folder and give that."
        )
    raise UserError(
        f"{part}: {scheme[1]}: is never opened; give a local folder, pattern or list of tars."
    )


def separators(text: str) -> list[tuple[int, int]]:
    """Where a list is cut: (begin, end) of each comma outside of braces and of each `::`."""
    cuts: list[tuple[int, int]] = []
    opened: list[int] = []
    i = 0
    while i < len(text):
        if text[i] == "{":
            opened.append(len(cuts))
        elif text[i] == "}" and opened:
            del cuts[opened.pop() :]  # what is between a pair of braces
        elif text[i] == ",":
            cuts.append((i, i + 1))
        elif text[i : i + 2] == "::":
            cuts.append((i, i + 2))
            i += 1
        i += 1
    return cuts


class Names(dict[str, list[str] | None]):
    """The names in folders, sorted, each folder listed once; None of one that is not readable."""

    def __missing__(self, folder: str) -> list[str] | None:
        try:
            self[folder] = sorted(os.listdir(folder or "."))
        except PermissionError:
            self[folder] = None
        except (OSError, ValueError):  # not there, no folder, a zero byte
            self[folder] = []
        return self[folder]


def begins(names: Names, path: str) -> bool:
    """Whether there may be a file or folder whose path begins with these letters."""
    folder, name = os.path.split(os.path.expanduser(path))
    found = names[folder]
    if found is None:
        return True
    at = bisect_left(found, name)
    return at < len(found) and found[at].startswith(name)


def parts(shards: str) -> list[str]:
    """The entries of a list, without blanks around them.

    A name that is there keeps the commas and colons in it.
    """
    cuts = separators(shards)
    starts, ends = [0, *(e for _, e in cuts)], [*(b for b, _ in cuts), len(shards)]
    names = Names()
    out, i = [], 0
    while i < len(starts):
        j = last = i
        while j + 1 < len(ends) and ends[j] - starts[i] < PATH_LIMIT:
            if not begins(names, shards[starts[i] : starts[j + 1]].lstrip()):
                break  # no name holds this comma
            upto = os.path.expanduser(shards[starts[i] : starts[j + 1]].strip())
            if AT_ROOT(shards, starts[j + 1]) and not os.path.isdir(upto):
                break  # the next begins at the root, as in most lists
            j += 1
            entry = shards[starts[i] : ends[j]].strip()
            if not separators(anchor(entry)[1]):
                last = j
        out.append(shards[starts[i] : ends[last]].strip())
        i = last + 1
    return out


def anchor(path: str) -> tuple[str, str]:
    """(the longest beginning of a path that is there, the rest): what is there is no pattern."""
    path = os.path.expanduser(path)
    names = path.split("/")
    for n in range(len(names), 0, -1):
        head = "/".join(names[:n]) or "/"
        if os.path.isdir(head) if n < len(names) else os.path.exists(head):
            return head, "/".join(names[n:])
    return "", path


def closing(text: str, at: int) -> int:
    """Where the brace that opens at `at` is closed, -1 where it never is."""
    depth = 0
    for i in range(at, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if not depth:
            return i
    return -1


def choices(body: str) -> Iterable[str] | None:
    """What stands between braces, each a pattern of its own; None where it is plain text."""
    span = SPAN(body)
    if span and span[1].isdigit() == span[2].isdigit():
        a, b, step = span[1], span[2], int(span[3] or 1) or 1
        if not a.isdigit():
            return map(chr, range(ord(a), ord(b) + 1, step))
        padded = any(x[0] == "0" and len(x) > 1 for x in (a, b)) or len(a) == len(b)
        width = max(len(a), len(b)) if padded else 0
        return (f"{n:0{width}d}" for n in range(int(a), int(b) + 1, step))
    cuts = [i for i, _ in separators(body) if body[i] == ","]
    if not cuts:
        return None
    return (
        body[i:j].strip()
        for i, j in zip([0, *(c + 1 for c in cuts)], [*cuts, len(body)], strict=True)
    )


def names_of(pattern: str) -> list[str]:
    """The names of a pattern; one more than the limit where there are more."""
    at = pattern.find("{")
    while at >= 0:
        end = closing(pattern, at)
        chosen = choices(pattern[at + 1 : end]) if end > 0 else None
        if chosen is not None:
            rests = names_of(pattern[end + 1 :])
            every = (
                pattern[:at] + inner + rest
                for choice in chosen
                for inner in names_of(choice)
                for rest in rests
            )
            return list(islice(every, NAMES_LIMIT + 1))
        at = pattern.find("{", at + 1)
    return [pattern]


def braces(pattern: str) -> list[str]:
    """Every name of a pattern such as `a-{000..012}.tar`, `{0..8..2}`, `{a..c}` or `{x,y{1,2}}`.

    Braces with neither a comma nor a range stand for themselves. Raises UserError beyond a million.
    """
    try:
        names = names_of(pattern)
    except RecursionError:
        raise UserError(f"{pattern[:99]}... has more braces than any list of shards.") from None
    if len(names) > NAMES_LIMIT:
        raise UserError(
            f"{pattern} means more than {NAMES_LIMIT:,} shards: look at the numbers in its braces."
        )
    return names


def below(folder: Path, name: str) -> list[Path]:
    """What one name of a pattern means in a folder."""
    if os.path.exists(folder / name):
        return [folder / name]
    if name == "**":
        return list(subfolders(folder))
    if not MAGIC(name) or not folder.is_dir():
        return []
    return [folder / x for x in entries(folder) if x[0] != "." and fnmatchcase(x, name)]


def matches(head: str, pattern: str) -> list[Path]:
    """The files and folders that a name below `head` means: itself where it is there,
    else what its `*`, `?`, `[...]` and `**` match. Nothing hidden is matched.
    """
    plain = Path(head) / pattern
    if os.path.exists(plain):
        return [plain]
    if not MAGIC(pattern):
        return []
    found = [Path("/") if pattern.startswith("/") else Path(head)]
    for name in filter(None, pattern.split("/")):
        found = [q for p in found for q in below(p, name)]
    return sorted(dict.fromkeys(p for p in found if p.is_file()))


def files(part: str, looks: list[Look]) -> list[Path]:
    """The shards of one entry of a list. Raises UserError where one is not there."""
    head, rest = anchor(part)
    if not rest:
        path = Path(head)
        return in_folder(path, looks) if path.is_dir() else [checked(path)]
    names = braces(rest)
    if not names:
        raise UserError(
            f"{part} means no shard: the numbers in its braces run from the lower to the higher."
        )
    found: list[Path] = []
    missing: list[str] = []
    for name in names:
        hits = matches(head, name)
        if not hits:
            missing.append(os.path.join(head, name))
        elif MAGIC(name) and hits != [Path(head) / name]:
            looks.append(Look(hits, name.rpartition("/")[2]))
        if len(hits) > 1 and all(hit.name.lower().endswith(TABLES) for hit in hits):
            raise buildable(f"{part} means {len(hits):,} tables and no tar", str(hits[0].parent))
        for hit in hits:
            found += in_folder(hit, looks) if hit.is_dir() else [checked(hit)]
    if missing:
        raise UserError(absent(part, missing, len(names)))
    return found


def absent(part: str, missing: list[str], count: int) -> str:
    """A sentence on names that are not there."""
    name, more = missing[0], len(missing) - 1
    if MAGIC(name):
        return f"{name} matches no file: look at the path and the pattern."
    others = "does 1 other" if more == 1 else f"do {more:,} others"
    others = f", nor {others} of the {count:,} that {part} means" if more else ""
    if dashed := re.search(r"\{(\w+)-(\w+)\}", name):
        advice = f"a range is written {{{dashed[1]}..{dashed[2]}}}."
    elif os.path.isfile(name + ".tar"):
        advice = f"{name}.tar does."
    elif " " in part and all(os.path.exists(os.path.expanduser(x)) for x in part.split()):
        advice = "names in a list are apart by commas."
    elif 0 < more + 1 < count:
        advice = "fetch what is missing, or give a glob (*) for those that are there."
    else:
        advice = "give a folder, pattern or list of shards that does."
    return f"{name} does not exist{others}: {advice}"


def in_folder(folder: Path, looks: list[Look]) -> list[Path]:
    """Its *.tar directly inside, but hidden ones. Raises UserError where there are none."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as e:
        raise UserError(
            f"{folder} cannot be read ({e.strerror}): look at its permissions."
        ) from None
    names = [n for n in names if n.endswith(".tar") and not n.startswith(".")]
    found = [folder / n for n in names if os.path.isfile(folder / n)]
    if not found:
        raise instead(folder, left_out(folder, Look([], "*.tar"), set()))
    looks.append(Look(found, "*.tar", deep=True))
    return found


def notes_on(look: Look, taken: set[Path]) -> Iterator[str]:
    """Sentences on what lies beside shards, of each folder. taken: all shards of the list."""
    together: dict[Path, list[str]] = defaultdict(list)
    for path in look.found:
        together[path.parent].append(path.name)
    for folder, names in together.items():
        clauses = left_out(folder, look, taken)
        if clauses:
            kind = "tar" if len(names) == 1 else "tars"
            yield f"{folder}: {len(names):,} {kind} taken, left out {'; '.join(clauses)}."
        if note := gaps(folder, names):
            yield note


def left_out(folder: Path, look: Look, taken: set[Path]) -> list[str]:
    """What beside shards looks like shards, a clause each kind."""
    stem = look.pattern.removesuffix(".tar")
    at = folder.absolute()
    found: dict[str, list[str]] = defaultdict(list)
    for name in entries(folder):
        core = TARRED(name.lstrip("._"))
        if not core or at / name in taken or not fnmatchcase(core[1], stem):
            continue
        if name.startswith("."):
            found["hidden file"].append(name)
        elif name.lower().endswith(PACKED):
            found["compressed tar"].append(name)
        elif name.endswith(UNFINISHED):
            found["unfinished download"].append(name)
        elif name.lower().endswith(".tar"):  # in capitals, a folder, a link that leads nowhere
            found["other entry"].append(name)
    clauses = [counted(names, noun) for noun, names in found.items()]
    if "compressed tar" in found:
        clauses.append("compressed ones are to be unpacked first")
    below, cut = inside(folder) if look.deep else ([], False)
    tars = [n for n in below if "/" in n and n.endswith(".tar") and at / n not in taken]
    if tars:
        more = "at least " if cut else ""
        clauses.append(
            f"{more}{counted(tars, 'tar')} in subfolders, which {folder}/**/*.tar takes too"
        )
    return clauses


def gaps(folder: Path, names: list[str]) -> str:
    """A sentence on numbers that are missing between those of shards, "" where none are.

    What counts is the last number in which names that are alike otherwise differ.
    """
    alike: dict[tuple[str, ...], list[list[str]]] = defaultdict(list)
    for name in names:
        pieces = re.split(r"(?<!\d)(\d{1,18})(?!\d)", name)
        alike[tuple(pieces[::2])].append(pieces)
    numbered: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    for several in alike.values():
        vary = [k for k, found in enumerate(zip(*several, strict=True)) if len(set(found)) > 1]
        for pieces in several if vary else ():
            before, after = "".join(pieces[: vary[-1]]), "".join(pieces[vary[-1] + 1 :])
            numbered[before, after][int(pieces[vary[-1]])] = pieces[vary[-1]]
    count, first = 0, ""
    for (before, after), digits in numbered.items():
        low, high = min(digits), max(digits)
        missing = high - low + 1 - len(digits)
        if not 0 < missing <= 10 * len(digits):  # numbers beyond are dates or hashes
            continue
        count += missing
        at = next(n for n in range(low, high) if n not in digits)
        first = first or f"{before}{at:0{len(digits[low])}d}{after}"
    more = "1 number is" if count == 1 else f"{count:,} numbers are"
    return f"{folder}: {more} missing between those of its shards, the first {first}." * (count > 0)


def checked(path: Path) -> Path:
    """A file by its own name. Raises UserError where it is no file or known to be no tar."""
    if not path.is_file():
        raise UserError(f"{path} is no regular file: give a folder, pattern or list of shards.")
    if not path.name.endswith(".tar"):
        with path.open("rb") as f:
            fault = not_a_tar(path, f.read(BLOCK))
        if fault:
            raise fault
    return path
