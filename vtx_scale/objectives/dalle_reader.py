"""Captions and pictures to arrays: what DALL-E's loader workers do."""

from dataclasses import dataclass

import numpy as np

from vtx_scale.data_pipeline.members import caption
from vtx_scale.data_pipeline.read import Draw, Row
from vtx_scale.data_pipeline.text import kept, tokenizer
from vtx_scale.objectives.image_reader import ImageReader
from vtx_scale.specs.run import Data

TEXT = 1 << 10  # the view whose random numbers belong to the text


@dataclass
class DalleReader:
    """image (S, S, 3) uint8; tokens (T,) int32, the end token behind the caption's;
    length () int64 of the caption; label.

    dropped: the share of a caption's merges that are left out in training.
    """

    images: ImageReader
    context: int
    dropped: float
    data: Data
    train: bool

    def blank(self) -> Row:
        return {
            **self.images.blank(),
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
        return {**self.images(members, draw), **framed(kept(ids), words.end, self.context)}


def framed(ids: list[int], end: int, context: int) -> Row:
    """tokens (T,) int32 and length () int64 of a caption, cut at the context."""
    tokens = np.full(context, end, np.int32)
    kept = ids[:context]
    tokens[: len(kept)] = kept
    return {"tokens": tokens, "length": np.array(len(kept), np.int64)}
