"""Writing a set of shards that appears whole: in parallel, and to be gone on with after any end.

While it is written its plan stands in `.vtx/packing/plan.json`, and a record there for each unit of
which all shards are stored. Beside a plan nobody takes the shards for a set; it goes when all are
confirmed, and the index comes last. The same command goes on where the last one ended, and another
is refused.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.index import UNFINISHED
from vtx_scale.data_pipeline.pool import Pool
from vtx_scale.data_pipeline.scan import shown
from vtx_scale.data_pipeline.storage import Storage
from vtx_scale.data_pipeline.tools.parallel import each
from vtx_scale.data_pipeline.tools.shards import Sample, write_tar

CLASSES = "classes.txt"
RECORDS, DONE = ".vtx/packing/", ".vtx/packed.json"
Line = dict[str, str]


@dataclass(frozen=True)
class Left:
    """A row of the input that is not in the set: where it stands, and why it is left out."""

    row: str
    reason: str
    detail: str = ""

    def line(self) -> Line:
        """As it is kept and printed."""
        said = {"row": self.row, "reason": self.reason}
        return said | ({"detail": self.detail} if self.detail else {})


@dataclass(frozen=True)
class Input:
    """What a set is made from.

    about: all that decides its bytes, as JSON. units: parts that each make a shard, in order;
    `read` gives the samples of one, and what is left out; both are picklable. count: of units.
    beside: other files of the set, such as `classes.txt`. split: the most samples of a shard where
    a unit may make several, else 0. guess: a sentence on what was taken for what, "" where nothing
    was guessed. holds: whether there are captions, whether labels, and of how many named classes.
    warning: a sentence on what would train badly, "" where nothing would.
    """

    about: dict[str, Any]
    units: Iterable[Any]
    count: int
    read: Callable[[Any], Iterator[Sample | Left]]
    beside: dict[str, bytes] = field(default_factory=dict)
    split: int = 0
    guess: str = ""
    holds: tuple[bool, bool, int] = (False, False, 0)
    warning: str = ""


def named(classes: Iterable[str]) -> dict[str, bytes]:
    """The file of the names of classes, in the order of their numbers; none of no classes."""
    lines = "".join(f"{name}\n" for name in classes)
    return {CLASSES: lines.encode("utf-8", "surrogateescape")} if lines else {}


@dataclass
class Packed:
    """What a set holds, or one unit of it: shards as {"name", "samples", "bytes", "sha256"}."""

    shards: list[dict[str, Any]] = field(default_factory=list)
    left: list[Line] = field(default_factory=list)


@dataclass(frozen=True)
class Packer:
    """Writes the shards of one unit after the other, in the process that it was sent to."""

    out: Storage
    read: Callable[[Any], Iterator[Sample | Left]]
    split: int

    def __call__(self, job: tuple[int, Any]) -> Packed:
        """The shards of unit (number, what `read` takes), which are stored when this returns."""
        number, unit = job
        if known := self.known(number):
            return known
        found = Packed()
        samples = self.sound(unit, found)
        for k, first in enumerate(samples):
            name = f"part-{number:06d}-{k:03d}.tar" if self.split else f"part-{number:06d}.tar"
            found.shards.append(self.shard(name, limited(first, samples, self.split)))
        body = json.dumps({"shards": found.shards, "left": found.left})
        self.out.put(f"{RECORDS}{number:06d}.json", body.encode())
        return found

    def known(self, number: int) -> Packed | None:
        """What an earlier run made of a unit, where all of it is still there."""
        record = read_json(self.out, f"{RECORDS}{number:06d}.json")
        if record is None or not all(stored(self.out, shard) for shard in record["shards"]):
            return None
        return Packed(**record)

    def sound(self, unit: Any, found: Packed) -> Iterator[Sample]:
        """The samples of a unit; what is left out is noted."""
        before: Sample = "", {}
        for item in self.read(unit):
            if not isinstance(item, Left) and item[0] == before[0]:
                if before[1].keys().isdisjoint(item[1]):  # what lay between them is left out
                    item = Left(shown(item[0]), "apart", "would be one sample with the one before")
            if isinstance(item, Left):
                found.left.append(item.line())
            else:
                before = item
                yield item

    def shard(self, name: str, samples: Iterable[Sample]) -> dict[str, Any]:
        """Write and store one. Raises OSError."""
        with self.out.scratch(f"{RECORDS}{name}.{os.urandom(4).hex()}") as path:
            count = write_tar(path, samples)
            shard = {"name": name, "samples": count, "bytes": path.stat().st_size}
            shard["sha256"] = digest_of(path)
            self.out.put_file(name, path)
        return shard


def limited(first: Sample, rest: Iterator[Sample], limit: int) -> Iterator[Sample]:
    """The first and those behind it, at most `limit` where it is not 0."""
    yield first
    count = 1
    while count != limit:
        try:
            yield next(rest)
        except StopIteration:
            return
        count += 1


def digest_of(path: Path) -> str:
    """SHA-256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stored(out: Storage, shard: dict[str, Any]) -> bool:
    """Whether a shard is there with its size."""
    head = out.head(shard["name"])
    return head is not None and head.size == shard["bytes"]


def read_json(storage: Storage, name: str) -> Any:
    """The value of an object, None where there is none or it is torn."""
    try:
        with storage.open(name) as found:
            return json.loads(found.read(0, found.size))
    except (FileNotFoundError, ValueError):
        return None


def pack(
    out: Storage,
    source: Input,
    workers: int | Pool,
    index: Callable[[], Any],
    left_out: Callable[[Line], None] = lambda line: None,
    tick: Callable[[int], None] = lambda units: None,
) -> dict[str, Any]:
    """Write a set to `out`, or what of it is missing; {"shards", "samples", "bytes", "left_out"}.

    index: makes the index when all shards are confirmed. left_out: takes the line of a row that
    cannot be used, in order. tick: is called with the number of units that are done. Raises
    UserError where `out` holds something else, or nothing of the input can be used.
    """
    beside = {name: hashlib.sha256(body).hexdigest() for name, body in source.beside.items()}
    known = {"format": "vtx-packed-1", "beside": beside, **source.about}
    about = json.dumps(known, sort_keys=True)
    plan = hashlib.sha256(about.encode()).hexdigest()
    if (finished := begun(out, plan)) is not None:
        index()
        forget(out)
        return finished
    packer = Packer(out, source.read, source.split)
    total = Packed()
    lines = 0
    for done, packed in enumerate(each(packer, enumerate(source.units), workers), 1):
        total.shards += packed.shards
        for line in packed.left:
            left_out(line)
        lines += len(packed.left)
        tick(done)
    if not total.shards and not lines and "side" in source.about:
        forget(out)
        raise UserError(
            f"--val {source.about['side'][0]} leaves one side without a row: give another share."
        )
    if not total.shards:
        forget(out)
        raise UserError(
            f"Nothing of the {lines:,} rows can be used, so that no set was made: "
            "mend what the lines above name."
        )
    confirm(out, total.shards)
    for name, body in source.beside.items():
        out.put(name, body)
    summary = {
        "shards": len(total.shards),
        "samples": sum(shard["samples"] for shard in total.shards),
        "bytes": sum(shard["bytes"] for shard in total.shards),
        "left_out": lines,
    }
    out.put(DONE, json.dumps({"plan": plan, **summary}).encode())
    out.delete(UNFINISHED)
    index()
    forget(out)
    return summary


def begun(out: Storage, plan: str) -> dict[str, Any] | None:
    """Begin a set, or go on with one of the same plan; what it holds where it is complete.

    Raises UserError where another one stands there.
    """
    known, done = read_json(out, UNFINISHED), read_json(out, DONE)
    if known is not None:
        check_plan(out, known, plan)
        return None
    if done is not None and done.pop("plan") == plan:
        finished: dict[str, Any] = done
        return finished
    if done is not None or any(name.endswith(".tar") for name in out.list("")):
        raise UserError(f"{out} holds shards already: give an empty folder.")
    if not out.put_if_absent(UNFINISHED, json.dumps({"plan": plan}).encode()):
        check_plan(out, read_json(out, UNFINISHED), plan)  # another command came first
    return None


def check_plan(out: Storage, known: Any, plan: str) -> None:
    """Raises UserError where what stands in `UNFINISHED` is not this plan."""
    if known is None:
        raise UserError(
            f"{out}/{UNFINISHED} is torn, or gone again by another command: run this one once "
            "more, or give an empty folder."
        )
    if known["plan"] != plan:
        raise UserError(
            f"{out} holds the beginning of another set: run the command that began it once "
            "more, or give an empty folder."
        )


def confirm(out: Storage, shards: list[dict[str, Any]]) -> None:
    """Raises UserError where a shard that was stored is not there."""
    gone = [shard["name"] for shard in shards if not stored(out, shard)]
    if gone:
        raise UserError(
            f"{out}: {gone[0]} is gone again, one of {len(gone):,}: run the same command once more."
        )


def forget(out: Storage) -> None:
    """Remove plan and records, the plan first: without it records say nothing."""
    out.delete(UNFINISHED)
    for name in list(out.list(RECORDS)):
        with contextlib.suppress(FileNotFoundError):
            out.delete(name)
