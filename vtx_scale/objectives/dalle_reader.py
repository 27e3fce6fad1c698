"""Captions and pictures, or their codes, to arrays: what DALL-E's loader workers do."""

from dataclasses import dataclass

import numpy as np

from vtx_scale.data_pipeline.codes import unpacked
from vtx_scale.data_pipeline.members import caption
from vtx_scale.data_pipeline.read import Draw, Row
from vtx_scale.data_pipeline.text import kept, tokenizer
from vtx_scale.objectives.image_reader import ImageReader
from vtx_scale.specs.run import Data

TEXT = 1 << 10  # the view whose random numbers belong to the text
CROP = 1 << 12  # that of the number by which one of several coded crops is taken


@dataclass
class DalleReader:
    """image (S, S, 3) uint8; tokens (T,) int32, the end token behind the caption's;
    length () int64 of the caption; label.

    dropped: the share of a caption's merges that are left out in training. codes: (places, vocab)
    where shards hold codes in place of pictures, of which codes (places,) int32 stand in that of
    image: in training those of a random crop, else those of the first.
    """

    images: ImageReader
    context: int
    dropped: float
    data: Data
    train: bool
    codes: tuple[int, int] | None = None

    def blank(self) -> Row:
        row = self.images.blank()
        if self.codes is not None:
            del row["image"]
            row["codes"] = np.zeros(self.codes[0], np.int32)
        return {
            **row,
            "tokens": np.zeros(self.context, np.int32),
            "length": np.array(0, np.int64),
        }

    def __call__(self, members: dict[str, bytes], draw: Draw) -> Row:
        text = caption(members, draw if self.train else None)
        words = tokenizer(self.data.tokenizer)
        if self.train and self.dropped and words.rougher is not None:
            seed = int(draw(TEXT, 1)[0] * 2**53)
            ids = words.rougher(text, self.dropped, np.random.Generator(np.random.Philox(seed)))
        else:
            ids = words.ids(text)
        seen = self.images(members, draw) if self.codes is None else self.coded(members, draw)
        return {**seen, **framed(kept(ids), words.end, self.context)}

    def coded(self, members: dict[str, bytes], draw: Draw) -> Row:
        """codes (places,) int32 of one crop, and label. Raises BadSample."""
        assert self.codes is not None
        label = [*self.images.known(members), -1][0]
        views = unpacked(members, *self.codes)
        one = self.train and len(views) > 1
        view = views[int(draw(CROP, 1)[0] * len(views)) if one else 0]
        return {"codes": view.astype(np.int32), "label": np.array(label, np.int64)}


def framed(ids: list[int], end: int, context: int) -> Row:
    """tokens (T,) int32 and length () int64 of a caption, cut at the context."""
    tokens = np.full(context, end, np.int32)
    kept = ids[:context]
    tokens[: len(kept)] = kept
    return {"tokens": tokens, "length": np.array(len(kept), np.int64)}
