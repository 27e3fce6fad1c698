"""The samples of several sources by one number."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from vtx_scale.data_pipeline.chunks import Source
from vtx_scale.data_pipeline.index import Index
from vtx_scale.data_pipeline.read import CHUNKS_KEPT, ChunkReader, Members


class Samples:
    """Samples of several indexes by one number: those of a source stand behind those of the sources
    before it. Holds descriptors and tables: made in the process that uses it.

    names: of the sources, where they have any. kept: tables a source. chunks: where those of each
    source are read, by default in their shards themselves.
    """

    def __init__(
        self,
        indexes: Sequence[Index],
        names: Sequence[str] = (),
        kept: int = CHUNKS_KEPT,
        chunks: Sequence[Source | None] = (),
    ) -> None:
        where = chunks or [None] * len(indexes)
        self.readers = [ChunkReader(i, kept, c) for i, c in zip(indexes, where, strict=True)]
        self.firsts = list(accumulate((index.n for index in indexes), initial=0))
        self.names = names

    def located(self, number: int) -> tuple[int, int]:
        """(source, sample number in it)."""
        source = bisect_right(self.firsts, number, hi=len(self.readers)) - 1
        return source, number - self.firsts[source]

    def sample(self, number: int) -> Members:
        """As `ChunkReader.sample`."""
        source, g = self.located(number)
        return self.readers[source].sample(g)

    def place(self, number: int) -> dict[str, Any]:
        """As `ChunkReader.place`, with the source and the number in it; the shard of a source that
        has a name is `name:part-000.tar`.
        """
        source, g = self.located(number)
        at = self.readers[source].place(g)
        if self.names:
            at["shard"] = f"{self.names[source]}:{at['shard']}"
        return {"source": source, **at, "sample": g}

    def id(self, number: int) -> str:
        """`part-000.tar/key`, of a source that has a name `name:part-000.tar/key`."""
        at = self.place(number)
        return f"{at['shard']}/{at['key']}"

    def close(self) -> None:
        """Close what is open."""
        for reader in self.readers:
            reader.close()
