"""Captioned pictures to arrays: what VirTex's loader workers do."""

import re
from dataclasses import dataclass

import numpy as np

from vtx_scale.data_pipeline.augment.colour import JITTER_WORDS, jitter
from vtx_scale.data_pipeline.augment.crop import CROP_WORDS, random_resized_crop_box
from vtx_scale.data_pipeline.crops import decode_crop
from vtx_scale.data_pipeline.decode import Box
from vtx_scale.data_pipeline.members import captions, image, label
from vtx_scale.data_pipeline.read import Draw, Row
from vtx_scale.data_pipeline.text import Tokenizer, kept, tokenizer
from vtx_scale.objectives.image_reader import middle
from vtx_scale.specs.run import Data
from vtx_scale.specs.virtex import VirtexConfig

SIDES = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}
SIDE = re.compile(r"\b(left|right)\b", re.IGNORECASE)


def turned(text: str) -> str:
    """A caption of the mirrored picture: left and right change places."""
    return SIDE.sub(lambda m: SIDES.get(m[0], SIDES[m[0].lower()]), text)


def framed(words: Tokenizer, text: str, context: int) -> Row:
    """tokens (T,) int32: start, words, end, then zeros; length () int64 of what counts.

    What is cut off takes the end along. Raises BadSample text where cleaning leaves nothing.
    """
    ids = [words.start, *kept(words.ids(text)), words.end][:context]
    out = np.zeros(context, np.int32)
    out[: len(ids)] = ids
    return {"tokens": out, "length": np.array(len(ids), np.int64)}


@dataclass
class VirtexReader:
    """image (S, S, 3) uint8, tokens (T,) int32, length () int64,
    label () int64 (-1 where there is none).

    In training one of a sample's captions, at random; else the first.
    """

    spec: VirtexConfig
    data: Data
    train: bool

    def blank(self) -> Row:
        side = self.spec.net.resolution
        return {
            "image": np.zeros((side, side, 3), np.uint8),
            "tokens": np.zeros(self.spec.context, np.int32),
            "length": np.array(0, np.int64),
            "label": np.array(-1, np.int64),
        }

    def __call__(self, members: dict[str, bytes], draw: Draw) -> Row:
        texts, kind, body = captions(members), label(members), image(members)
        spec, data = self.spec, self.data
        side = spec.net.resolution
        if not self.train:
            text = texts[0]
            pixels = decode_crop(body, lambda h, w: middle(h, w, data.centre), side, data.bicubic)
        else:
            u = draw(0, CROP_WORDS + JITTER_WORDS + 3)
            which, flips, jitters = u[CROP_WORDS : CROP_WORDS + 3].tolist()
            text = texts[int(which * len(texts))]

            def drawn(h: int, w: int) -> Box:
                return random_resized_crop_box(h, w, u, data.crop, data.ratio)

            pixels = decode_crop(body, drawn, side, data.bicubic, data.decode)
            if flips < data.flip:
                pixels, text = (
                    np.ascontiguousarray(pixels[:, ::-1]),
                    turned(text) if spec.mirrored else text,
                )
            if jitters < spec.jitter_share:
                pixels = jitter(pixels, u[CROP_WORDS + 3 :], *spec.jitter)
        return {
            "image": pixels,
            "label": np.array(kind, np.int64),
            **framed(tokenizer(data.tokenizer), text, spec.context),
        }
