"""`vtx data verify`: every bad sample of a set of shards, and nothing that is sound.

With a recipe its reader judges, as it does in a run; without one each member that a reader could
ask for is looked at.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from vtx_scale.data_pipeline import codes
from vtx_scale.data_pipeline import members as sample
from vtx_scale.data_pipeline.augment.crop import centre_box
from vtx_scale.data_pipeline.decode import decode_image
from vtx_scale.data_pipeline.errors import BadSample, judged
from vtx_scale.data_pipeline.layout import Layout
from vtx_scale.data_pipeline.loader import Reader, put, uniforms
from vtx_scale.data_pipeline.read import Members
from vtx_scale.data_pipeline.remote import named
from vtx_scale.data_pipeline.scan import Told, open_shard, shown
from vtx_scale.data_pipeline.shards import Shards, local_shards
from vtx_scale.data_pipeline.storage import File
from vtx_scale.data_pipeline.tar import IMAGES, MEMBER_LIMIT, Problem, Sample, samples
from vtx_scale.data_pipeline.video import decode_clip

SEEN = (*IMAGES, *sample.VIDEOS, codes.MEMBER)
SMALL = 16  # pixels of a side of the frame of a video that is looked at
WITHOUT_TEXT = 10_000  # samples that are pictures alone, before the whole set is taken for such
Line = dict[str, str]


def verify(
    shards: str | Shards,
    reader: Reader | None = None,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[Line]:
    """{"shard", "key", "reason", "member"} a bad sample; a fault of the tar itself has the key ""
    and its reason.

    reader: of a recipe, which then judges with the numbers that it is given in the first epoch of a
    run of this seed. Without one a sample is bad of which a picture, a text, the JSON or a label
    is, which has no picture, or neither text nor class where others have. A set without any sample
    is one line. say: takes a sentence, those of `index.build` among them.

    Raises UserError where shards are missing or no tars, or a reader lacks something.
    """
    judge = Judge(reader, seed)
    layout = Layout()
    listed = local_shards(shards, say) if isinstance(shards, str) else named(shards)
    told, found = Told(say), 0  # samples, and lines on tars
    for at, path, _ in listed.files():
        name, url = shown(at), listed.url(at)
        layout.begin(name)
        counts: Counter[str] = Counter()
        with open_shard(path, url) as shard:
            if not len(shard):
                found += 1
                yield {"shard": name, "key": "", "reason": "tar_tail", "member": ""}
            for item in samples(shard):
                if isinstance(item, Problem):
                    told(path.name, item)
                    if item.reason in ("tar_header", "tar_tail"):
                        found += 1
                        yield {"shard": name, "key": "", "reason": item.reason, "member": ""}
                    continue
                found += 1
                layout.add(item)
                counts[item.key] += 1
                times = counts[item.key]
                key = shown(item.key) + (f"#{times}" if times > 1 else "")
                yield from judge({"shard": name, "key": key}, url, shard, item)
    told.end()
    if not found:
        yield {
            "shard": shown(listed.title),
            "key": "",
            "reason": "member_missing",
            "member": "any sample",
        }
    for sentence in layout.sentences():
        say(shown(sentence, 999))


class Judge:
    """Says of one sample after the other what is wrong with it."""

    def __init__(self, reader: Reader | None, seed: int) -> None:
        self.reader, self.seed = reader, seed
        self._number = -1
        self._rows = (
            {k: np.zeros((1, *v.shape), v.dtype) for k, v in reader.blank().items()}
            if reader
            else {}
        )
        # bad where another has a text or a class: none of a set of pictures alone
        self._without: list[Line] | None = []
        self._with = False

    def __call__(self, at: Line, url: str, shard: File, item: Sample) -> Iterator[Line]:
        """Its line where it is bad, and before it the lines of those that it shows to be bad."""
        self._number += 1
        if item.reason:
            yield {**at, "reason": item.reason, "member": at_fault(item, len(shard))}
            return
        members = Members(__key__=item.key, __url__=url)
        try:
            for name, (offset, size) in item.members.items():
                members[name] = shard.read(offset, size)
        except OSError:
            yield {**at, "reason": "read_error", "member": name}
            return
        if self.reader is None:
            reason, member = looked_at(members)
            if not reason:
                yield from self._lacking(at, members)
        else:
            reason, member = self._read(self.reader, members)
        if reason:
            yield {**at, "reason": reason, "member": member}

    def _read(self, reader: Reader, members: Members) -> tuple[str, str]:
        draw = uniforms(self.seed, 0, self._number, 0)
        try:
            put(reader, members, draw, self._rows, 0)
        except BadSample as e:
            return e.reason, shown(behind(e, members))
        return "", ""

    def _lacking(self, at: Line, members: Members) -> Iterator[Line]:
        """The lines of samples that have neither text nor class, once it is known that they ought
        to have.
        """
        if described(members):
            self._with = True
            yield from self._without or ()
            self._without = []
        elif self._without is not None:
            line = {**at, "reason": "member_missing", "member": "text or class"}
            if self._with:
                yield line
            elif len(self._without) < WITHOUT_TEXT:
                self._without.append(line)
            else:
                self._without = None


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
