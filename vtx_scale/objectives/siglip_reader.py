"""Image-text samples to arrays: what SigLIP's loader workers do."""

import string
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vtx_scale.data_pipeline.crops import Decode, decode_crop
from vtx_scale.data_pipeline.members import caption, image, label
from vtx_scale.data_pipeline.read import Draw, Row
from vtx_scale.data_pipeline.text import Tokenizer, kept, tokenizer
from vtx_scale.objectives.pairs import blank_pair

MARKS = str.maketrans({"_": " ", **{c: None for c in string.punctuation if c != "_"}})


def canonical(text: str) -> str:
    """Lower case without punctuation, white space collapsed."""
    return " ".join(text.translate(MARKS).lower().split())


def encode(words: Tokenizer, text: str, context: int) -> NDArray[np.int32]:
    """(context,) int32: a canonical text, then end tokens to the last position,
    which always is one.
    """
    if not text.isascii():  # half a surrogate pair, which JSON can spell, is no text
        text = text.encode("utf-8", "replace").decode()
    return framed(words, words.ids(canonical(text)), context)


def framed(words: Tokenizer, ids: list[int], context: int) -> NDArray[np.int32]:
    """(context,) int32: `encode` of a text that has these ids."""
    out = np.full(context, words.end, np.int32)
    ids = ids[: context - 1]
    out[: len(ids)] = ids
    return out


def encode_all(words: Tokenizer, texts: Iterable[str], context: int) -> NDArray[np.int32]:
    return np.stack([encode(words, t, context) for t in texts])


@dataclass
class SiglipReader:
    """image (S, S, 3) uint8, tokens (T,) int32, label () int64 (-1 where there is none).

    The whole image is squashed to the square, in training too; there it may be flipped.
    """

    size: int
    context: int
    flip: float
    tokenizer: str
    train: bool
    bicubic: bool = True
    decode: Decode = "exact"  # of training

    def blank(self) -> Row:
        return blank_pair(self.size, self.context)

    def __call__(self, members: dict[str, bytes], draw: Draw) -> Row:
        text, kind = caption(members, draw if self.train else None), label(members)
        words = tokenizer(self.tokenizer)
        ids, body = kept(words.ids(canonical(text))), image(members)
        decode: Decode = self.decode if self.train else "exact"
        pixels = decode_crop(body, lambda h, w: (0, 0, h, w), self.size, self.bicubic, decode)
        if self.train and self.flip and draw(0, 1)[0] < self.flip:
            pixels = pixels[:, ::-1]
        return {
            "image": pixels,
            "tokens": framed(words, ids, self.context),
            "label": np.array(kind, np.int64),
        }
