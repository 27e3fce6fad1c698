"""What in the names of members would surprise whoever packed them: samples that come apart,
and names whose dots make many pictures one sample.
"""

from vtx_scale.data_pipeline.tar import IMAGES, Sample

MANY = 4  # pictures in a sample of which none has a plain name


def plural(count: int, noun: str, verb: str) -> str:
    """Such as "1 sample has" or "3 samples have"; verb: both forms, with a slash between them."""
    one, more = verb.split("/")
    return f"{count:,} {noun} {one}" if count == 1 else f"{count:,} {noun}s {more}"


class Layout:
    """Looks at the samples of shards in their order; `sentences` says what stood out."""

    def __init__(self) -> None:
        self._shard = ""
        self._last = ""
        self._kinds: dict[str, frozenset[str]] = {}
        self.apart, self.first_apart = 0, ""
        self.dotted, self.first_dotted = 0, ""
        self.hidden, self.first_hidden = 0, ""

    def begin(self, shard: str) -> None:
        """The samples of this shard come next."""
        self._shard, self._last, self._kinds = shard, "", {}

    def add(self, sample: Sample) -> None:
        """The next sample."""
        key, kinds = sample.key, frozenset(sample.members)
        if key.endswith("/"):  # of members whose names begin with a dot
            self.hidden += len(kinds)
            first = next(iter(sample.members), "")
            self.first_hidden = self.first_hidden or f"{key}.{first} in {self._shard}"
            return
        before = self._kinds.get(key)
        self._kinds[key] = kinds if before is None else before | kinds
        if before is not None and key != self._last and before.isdisjoint(kinds):
            self.apart += 1
            self.first_apart = self.first_apart or f"{key} in {self._shard}"
        self._last = key
        if kinds.isdisjoint(IMAGES):
            self._without_plain(sample)

    def _without_plain(self, sample: Sample) -> None:
        pictures = [x for x in sample.members if x.rpartition(".")[2] in IMAGES]
        # a version or a date in front, and not one of several numbered views
        odd = any(x[0].isdigit() and not x.partition(".")[0].isdigit() for x in pictures)
        if len(pictures) >= MANY or odd:
            self.dotted += 1
            more = f" and {len(pictures) - 1:,} more" if len(pictures) > 1 else ""
            self.first_dotted = self.first_dotted or (
                f"key {sample.key}, member {pictures[0]}{more}, in {self._shard}"
            )

    def join(self, later: "Layout") -> None:
        """Take in what another one saw of the shards behind these."""
        for name in ("apart", "dotted", "hidden"):
            first = f"first_{name}"
            setattr(self, name, getattr(self, name) + getattr(later, name))
            setattr(self, first, getattr(self, first) or getattr(later, first))

    def sentences(self) -> list[str]:
        """For people, at most one of each kind."""
        out = []
        if self.hidden:
            out.append(
                f"{plural(self.hidden, 'member', 'has a name that begins/have names that begin')} "
                f"with a dot (the first is {self.first_hidden}), as a Mac adds them, and part the "
                "members of the samples beside them: pack without them, with COPYFILE_DISABLE=1."
            )
        elif self.apart:
            out.append(
                f"{plural(self.apart, 'key', 'comes/come')} again behind other samples with other "
                f"members (the first is {self.first_apart}), but a sample is members that lie side "
                "by side: pack them in the order of their names, as 'tar --sort=name' does."
            )
        if self.dotted:
            out.append(
                f"{plural(self.dotted, 'sample', 'has/have')} pictures under no plain name (the "
                f"first: {self.first_dotted}), since a key ends at the first dot of a name: take "
                "the dots out of the names before they are packed, as in v1_0_00001.jpg."
            )
        return out
