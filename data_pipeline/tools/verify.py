"""`vtx data verify`: every bad sample of a set of shards, and nothing that is sound.

With a recipe its reader judges, as it does in a run; without one each member that a reader could
ask for is looked at.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate, repeat
from pathlib import Path
from typing import Any

import numpy as np

from vtx_scale.data_pipeline import codes
from vtx_scale.data_pipeline import members as sample
from vtx_scale.data_pipeline.augment.crop import centre_box
from vtx_scale.data_pipeline.batches import Reader, put, uniforms
from vtx_scale.data_pipeline.decode import decode_image
from vtx_scale.data_pipeline.errors import BadSample, judged
from vtx_scale.data_pipeline.layout import Layout
from vtx_scale.data_pipeline.pool import Pool
from vtx_scale.data_pipeline.read import Members
from vtx_scale.data_pipeline.remote import named
from vtx_scale.data_pipeline.scan import PROBLEMS_SHOWN, Told, open_shard, shown
from vtx_scale.data_pipeline.shards import Shards, local_shards
from vtx_scale.data_pipeline.storage import File, Storage
from vtx_scale.data_pipeline.tar import IMAGES, MEMBER_LIMIT, Problem, Sample, samples
from vtx_scale.data_pipeline.video import decode_clip

SEEN = (*IMAGES, *sample.VIDEOS, codes.MEMBER)
SMALL = 16  # pixels of a side of the frame of a video that is looked at
WITHOUT_TEXT = 10_000  # samples that are pictures alone, before the whole set is taken for such
MEMBERS = {"cls": "a class", "text": "a caption", "image": "a picture"}  # for people
Line = dict[str, str]


def verify(
    shards: str | Shards,
    reader: Reader | None = None,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
    pool: Pool | None = None,
) -> Iterator[Line]:
    """{"shard", "key", "reason", "member"} a bad sample; a fault of the tar itself has the key ""
    and its reason.

    reader: of a recipe, which then judges with the numbers that it is given in the first epoch of a
    run of this seed. Without one a sample is bad of which a picture, a text, the JSON or a label
    is, which has no picture, or neither text nor class where others have. A set without any sample
    is one line. say: takes a sentence, those of `index.build` among them. pool: looks at a shard a
    unit.

    Raises UserError where shards are missing or no tars, or a reader lacks something.
    """
    listed = local_shards(shards, say) if isinstance(shards, str) else named(shards)
    judging = Judging(listed.root, reader, seed)
    parts = judging.each(listed) if pool is None else pool(judging, judging.units(listed, pool))
    layout, told, lacking, found = Layout(), Told(say), Lacking(), 0  # samples, and lines on tars
    total, missing = 0, Counter[str]()  # samples, and those that lack a member
    for name, part in zip(listed.names, parts, strict=True):
        told.shard(name.rpartition("/")[2], part.problems, part.counts)
        layout.join(part.layout)
        found += part.samples + part.faults
        total += part.samples
        for verdict, line in part.verdicts:
            if verdict == "bad" and line["reason"] == "member_missing":
                missing[line["member"]] += 1
            yield from lacking(verdict, line)
    told.end()
    for member, count in missing.items():
        if count == total:
            say(f"no sample has {MEMBERS.get(member, member)}")
    if not found:
        yield {
            "shard": shown(listed.title),
            "key": "",
            "reason": "member_missing",
            "member": "any sample",
        }
    for sentence in layout.sentences():
        say(shown(sentence, 999))


@dataclass
class Part:
    """What there is to say of one shard.

    verdicts: "bad" and "lacks" with the line of a sample, "has" with none where one has a text or a
    class, the first alone; in order. faults: lines on the tar itself.
    """

    verdicts: list[tuple[str, Line]] = field(default_factory=list)
    samples: int = 0
    faults: int = 0
    problems: list[Problem] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    layout: Layout = field(default_factory=Layout)


@dataclass(frozen=True)
class Judging:
    """Looks at a shard of a place, (its name, the number of its first sample in the set)."""

    root: Storage
    reader: Reader | None
    seed: int

    def __call__(self, unit: tuple[str, int]) -> Part:
        """What there is to say of it. Raises UserError where it is missing or no tar."""
        name, first = unit
        ((at, path, _),) = Shards(self.root, [name], "").files()
        return self.of(at, path, first)

    def each(self, shards: Shards) -> Iterator[Part]:
        """The same of all, one after the other."""
        number = 0
        for at, path, _ in shards.files():
            part = self.of(at, path, number)
            number += part.samples
            yield part

    def units(self, shards: Shards, pool: Pool) -> Iterator[tuple[str, int]]:
        """All shards, as units. Their samples are counted first where numbers matter: a reader's
        chances belong to the number of a sample.
        """
        counts = pool(Counting(self.root), shards.names) if self.reader else repeat(0)
        firsts = accumulate(counts, initial=0)
        return zip(shards.names, firsts, strict=False)

    def of(self, at: str, path: Path, first: int) -> Part:
        """What there is to say of the shard in a file."""
        part = Part()
        judge, name = Judge(self.reader, self.seed, first), shown(at)
        part.layout.begin(name)
        times: Counter[str] = Counter()
        url = Shards(self.root, [], "").url(at)
        with open_shard(path, url) as shard:
            if not len(shard):
                part.faults += 1
                part.verdicts.append(("bad", fault_of(name, "tar_tail")))
            for item in samples(shard):
                if isinstance(item, Problem):
                    part.counts[item.reason] += 1
                    if part.counts[item.reason] <= PROBLEMS_SHOWN:
                        part.problems.append(item)
                    if item.reason in ("tar_header", "tar_tail"):
                        part.faults += 1
                        part.verdicts.append(("bad", fault_of(name, item.reason)))
                    continue
                part.samples += 1
                part.layout.add(item)
                times[item.key] += 1
                again = times[item.key]
                key = shown(item.key) + (f"#{again}" if again > 1 else "")
                if verdict := judge({"shard": name, "key": key}, url, shard, item):
                    part.verdicts.append(verdict)
        return part


@dataclass(frozen=True)
class Counting:
    """Counts the samples of a shard of a place."""

    root: Storage

    def __call__(self, name: str) -> int:
        """How many there are. Raises UserError where it is missing or no tar."""
        ((_, path, _),) = Shards(self.root, [name], "").files()
        with open_shard(path, Shards(self.root, [], "").url(name)) as shard:
            return sum(not isinstance(item, Problem) for item in samples(shard))


def fault_of(shard: str, reason: str) -> Line:
    """The line on a tar itself."""
    return {"shard": shard, "key": "", "reason": reason, "member": ""}


class Lacking:
    """Gives the lines of samples that have neither text nor class once it is known that they ought
    to have: bad where another has one, and none of a set of pictures alone.
    """

    def __init__(self) -> None:
        self._without: list[Line] | None = []
        self._with = False

    def __call__(self, verdict: str, line: Line) -> Iterator[Line]:
        """The lines that the next verdict shows to be bad."""
        if verdict == "bad":
            yield line
        elif verdict == "has":
            self._with = True
            yield from self._without or ()
            self._without = []
        elif self._without is not None:
            if self._with:
                yield line
            elif len(self._without) < WITHOUT_TEXT:
                self._without.append(line)
            else:
                self._without = None


class Judge:
    """Says of one sample of a shard after the other what is wrong with it.

    number: of the first.
    """

    def __init__(self, reader: Reader | None, seed: int, number: int) -> None:
        self.reader, self.seed = reader, seed
        self._number = number - 1
        self._rows = (
            {k: np.zeros((1, *v.shape), v.dtype) for k, v in reader.blank().items()}
            if reader
            else {}
        )
        self._has = False

    def __call__(self, at: Line, url: str, shard: File, item: Sample) -> tuple[str, Line] | None:
        """The verdict on it as `Part` has it, None where there is nothing to say."""
        self._number += 1
        if item.reason:
            return "bad", {**at, "reason": item.reason, "member": at_fault(item, len(shard))}
        members = Members(__key__=item.key, __url__=url)
        try:
            for name, (offset, size) in item.members.items():
                members[name] = shard.read(offset, size)
        except OSError:
            return "bad", {**at, "reason": "read_error", "member": name}
        if self.reader is not None:
            reason, member = self._read(self.reader, members)
        else:
            reason, member = looked_at(members)
            if not reason and described(members):
                first, self._has = not self._has, True
                return ("has", {}) if first else None
            if not reason:
                return "lacks", {**at, "reason": "member_missing", "member": "text or class"}
        return ("bad", {**at, "reason": reason, "member": member}) if reason else None

    def _read(self, reader: Reader, members: Members) -> tuple[str, str]:
        draw = uniforms(self.seed, 0, self._number, 0)
        try:
            put(reader, members, draw, self._rows, 0)
        except BadSample as e:
            return e.reason, shown(behind(e, members))
        return "", ""


def described(members: Mapping[str, Any]) -> bool:
    """Whether a sample has a text or a class, or a JSON that may hold one: that of
    `vtx data build` has the path of the picture alone.
    """
    if any(x in members for x in sample.TEXTS if x != "json"):
        return True
    try:
        value = sample.about(members) if "json" in members else {}
    except BadSample:
        return True
    return bool(set(value) - {"path"} if isinstance(value, dict) else value)


def at_fault(item: Sample, length: int) -> str:
    """The member for which the headers alone say that a sample cannot be used."""
    for name, (offset, size) in item.members.items():
        if (
            (item.reason == "tar_truncated" and offset + size > length)
            or (item.reason == "member_size" and size > MEMBER_LIMIT)
            or (item.reason == "empty" and not size and name in IMAGES)
        ):
            return shown(name)
    return ""


def behind(fault: BadSample, members: Mapping[str, Any]) -> str:
    """The member that a reader's word is about, as far as the word says so."""
    kinds = {
        "image": (*IMAGES, *sample.VIDEOS),
        "video": sample.VIDEOS,
        "codes": (codes.MEMBER,),
        "jpeg": IMAGES,
        "empty": (*IMAGES, *sample.VIDEOS),
        "text": sample.CAPTIONS,
        "json": ("json",),
        "label": ("cls",),
    }
    if fault.reason == "member_missing":
        return fault.detail
    names = kinds.get(fault.reason.partition("_")[0], ())
    return next((x for x in names if x in members), "")


def fault(members: Mapping[str, Any]) -> str:
    """Why a sample with these members cannot be used, or ""."""
    return looked_at(members)[0]


def looked_at(members: Mapping[str, Any]) -> tuple[str, str]:
    """(why a sample with these members cannot be used, the member), each "" where it can."""
    if not any(x in members for x in SEEN):
        return "member_missing", "image"
    for name in (*SEEN, *sample.TEXTS):
        if name in members:
            try:
                judged("reader_error", look, name, members)
            except BadSample as e:
                # of an empty text the JSON may be read in its place
                return e.reason, "json" if e.reason == "json" else name
    return "", ""


def look(name: str, members: Mapping[str, Any]) -> None:
    """One member, as a reader would that asks for it. Raises BadSample."""
    if name in IMAGES:
        decode_image(members[name])
    elif name in sample.VIDEOS:
        decode_clip(members[name], 1, 1, 0.5, centre_box, SMALL)
    elif name == codes.MEMBER:
        codes.header(members[name])
    elif name == "json":
        sample.about(members)
    elif name == "cls":
        if not sample.labels(members):
            raise BadSample("label", "empty")
    else:
        try:
            sample.text(members[name])
        except BadSample:
            sample.caption(members)  # another is read in the place of an empty one
