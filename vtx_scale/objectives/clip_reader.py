"""Image-text samples to arrays: what CLIP's loader workers do."""

from dataclasses import dataclass

import numpy as np

from vtx_scale.data_pipeline.augment.crop import CROP_WORDS, centre_box, random_resized_crop_box
from vtx_scale.data_pipeline.crops import Decode, decode_crop
from vtx_scale.data_pipeline.decode import Box
from vtx_scale.data_pipeline.members import caption, image, label
from vtx_scale.data_pipeline.read import Draw, Row
from vtx_scale.data_pipeline.text import kept, tokenizer
from vtx_scale.objectives.pairs import blank_pair


@dataclass
class ClipReader:
    """image (S, S, 3) uint8, tokens (T,) int32, label () int64 (-1 where there is none).

    Training: random resized crop and flip; else the short side resized and the centre cropped. The
    resize is bicubic as CLIP's.
    """

    size: int
    context: int
    crop: tuple[float, float]
    ratio: tuple[float, float]
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
        ids, body = kept(words.ids(text)), image(members)
        if self.train:
            u = draw(0, CROP_WORDS + 1)

            def drawn(h: int, w: int) -> Box:
                return random_resized_crop_box(h, w, u, self.crop, self.ratio)

            pixels = decode_crop(body, drawn, self.size, self.bicubic, self.decode)
            if u[CROP_WORDS] < self.flip:
                pixels = pixels[:, ::-1]
        else:
            pixels = decode_crop(body, centre_box, self.size, self.bicubic)
        return {
            "image": pixels,
            "tokens": words.framed(ids, self.context),
            "label": np.array(kind, np.int64),
        }
