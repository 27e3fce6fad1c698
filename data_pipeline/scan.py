"""One shard as its headers and bytes say: where samples and chunks lie, what is wrong with it."""

import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.foreign import not_a_tar
from vtx_scale.data_pipeline.layout import Layout
from vtx_scale.data_pipeline.storage import File
from vtx_scale.data_pipeline.tar import BLOCK, Problem, samples

CHUNK, CAP = 256, 8 << 20
EXTENT_LIMIT = 1 << 32
PROBLEMS_SHOWN = 20  # lines a reason, then counts


@dataclass(frozen=True)
class Scan:
    """One shard as its headers and bytes say."""

    size: int
    mtime_ns: int
    first: int  # offset of its first sample
    chunks: list[tuple[int, int, int]]  # samples, bytes, CRC-32
    bad: dict[int, str]  # place in the shard -> reason
    again: dict[int, int]
    problems: list[Problem]  # the first of each reason
    counts: Counter[str]  # all of them
    layout: Layout
    keys: list[str]  # of its samples, where they were asked for

    @property
    def samples(self) -> int:
        return sum(c[0] for c in self.chunks)


def open_shard(path: Path, url: str = "") -> File:
    """A tar for reading. Raises UserError for a compressed one, for what is something else,
    and for what cannot be opened.

    url: where it lies, of a copy.
    """
    try:
        shard = File(path)
    except PermissionError as e:
        raise UserError(f"{path} cannot be opened ({e.strerror}): look at its mode.") from None
    if fault := not_a_tar(path, shard[:BLOCK]):
        shard.close()
        raise UserError(str(fault).replace(str(path), url)) if url else fault
    return shard


def crc(shard: File, offset: int, length: int) -> int:
    value = 0
    for at in range(offset, offset + length, CAP):
        value = zlib.crc32(shard.read(at, min(CAP, offset + length - at)), value)
    return value


def scan(path: Path, chunk: int = CHUNK, url: str = "", keys: bool = False) -> Scan:
    """Read one shard. url: where it lies, of a copy. keys: whether those of its samples are kept.

    Raises UserError where it cannot be indexed.
    """
    layout = Layout()
    layout.begin(shown(path.name))
    kept: list[str] = []
    problems: list[Problem] = []
    counts: Counter[str] = Counter()
    starts: list[int] = []
    bad: dict[int, str] = {}
    again: dict[int, int] = {}
    times: Counter[str] = Counter()
    end = 0
    with open_shard(path, url) as shard:
        if not len(shard):
            problems, counts = [Problem("tar_tail", 0, "the file is empty")], Counter(tar_tail=1)
        for item in samples(shard):
            if isinstance(item, Problem):
                counts[item.reason] += 1
                if counts[item.reason] <= PROBLEMS_SHOWN:
                    problems.append(item)
                continue
            layout.add(item)
            if keys:
                kept.append(item.key)
            times[item.key] += 1
            if times[item.key] > 1:
                again[len(starts)] = times[item.key]
            if item.reason:
                bad[len(starts)] = item.reason
            starts.append(item.start)
            end = item.end
        chunks: list[tuple[int, int, int]] = []
        n, a = len(starts), 0
        if n:
            starts.append(min(len(shard), -(-end // 512) * 512))
        while a < n:
            b = a + 1
            while b < n and b - a < chunk and starts[b + 1] - starts[a] <= CAP:
                b += 1
            extent = starts[b] - starts[a]
            if extent >= EXTENT_LIMIT:
                raise UserError(
                    f"{url or path}: the sample at byte {starts[a]} spans {extent} bytes, "
                    "4 GiB is the limit: write the shard without it."
                )
            chunks.append((b - a, extent, crc(shard, starts[a], extent)))
            a = b
        first = starts[0] if n else 0
        about = problems, counts, layout, kept
        return Scan(len(shard), shard.mtime_ns, first, chunks, bad, again, *about)


class Told:
    """Says what is wrong with shards, the first of each reason; `end` gives the counts."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.counts: Counter[str] = Counter()

    def __call__(self, shard: str, problem: Problem) -> None:
        """The next problem, of the shard of this name."""
        self.counts[problem.reason] += 1
        if self.counts[problem.reason] <= PROBLEMS_SHOWN:
            line = f"{shard} byte {problem.offset}: {problem.reason} {shown(problem.detail)}"
            self.say(line.rstrip())

    def shard(self, name: str, problems: list[Problem], counts: Counter[str]) -> None:
        """Those of a whole shard: the first of each reason, and how many there are."""
        for problem in problems:
            self(name, problem)
        self.counts.update(counts - Counter(p.reason for p in problems))

    def end(self) -> None:
        """How many of each reason there were, where not all were shown."""
        if any(v > PROBLEMS_SHOWN for v in self.counts.values()):
            self.say("in all: " + ", ".join(f"{v} {k}" for k, v in sorted(self.counts.items())))


def shown(name: str, letters: int = 256) -> str:
    """A name from a tar as it is printed and kept in the ledger:
    no control characters, at most so many letters.
    """
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:letters]
    )
