"""Labelled images to arrays: what the loader workers of image objectives do."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vtx_scale.data_pipeline import members as member_of
from vtx_scale.data_pipeline.augment.crop import (
    CROP_WORDS,
    centre_box,
    padded_crop,
    random_resized_crop_box,
    zoomed_box,
)
from vtx_scale.data_pipeline.augment.randaug import RandAugment
from vtx_scale.data_pipeline.crops import Crop, decode_crops
from vtx_scale.data_pipeline.decode import Box, Pixels, decode_image, resize_crop
from vtx_scale.data_pipeline.errors import BadSample
from vtx_scale.data_pipeline.read import Draw, Row
from vtx_scale.specs.run import Data

GREY = (128, 128, 128)  # what the plain form of RandAugment fills with


def middle(height: int, width: int, share: float) -> Box:
    """The centred square whose side is `share` of the short side."""
    top, left, side, _ = centre_box(height, width)
    inner = max(2, round(side * share))
    return top + (side - inner) // 2, left + (side - inner) // 2, inner, inner


@dataclass
class ImageReader:
    """image (S, S, 3) uint8, or (views, S, S, 3) in training where a slot holds several;
    label () int64, -1 for none.

    With `labels` above 1 also labels (labels,) int64, -1 behind the last. With `masks` also mask
    (S, S) uint8, 0 where there is none. A training sample must have a label below `classes`, where
    there are classes.
    """

    size: int
    data: Data
    train: bool
    classes: int = 0
    labels: int = 1
    masks: bool = False

    def __post_init__(self) -> None:
        augment = self.data.augment
        self.views = augment.repeats if self.train else 1
        self.randaug = RandAugment(
            layers=augment.randaug_layers,
            magnitude=augment.randaug_magnitude,
            noise=augment.randaug_noise,
            increasing=augment.randaug_increasing,
            **({} if augment.randaug_increasing else {"fill": GREY}),
        )

    def blank(self) -> Row:
        square = (self.size, self.size)
        out = {
            "image": np.zeros((*((self.views,) if self.views > 1 else ()), *square, 3), np.uint8),
            "label": np.array(-1, np.int64),
        }
        if self.labels > 1:
            out["labels"] = np.full(self.labels, -1, np.int64)
        if self.masks:
            out["mask"] = np.zeros(square, np.uint8)
        return out

    def known(self, members: dict[str, bytes]) -> list[int]:
        """The labels.

        Raises BadSample: label where there are too many or one is out of range, member_missing.
        """
        found = list(dict.fromkeys(member_of.labels(members)))  # one that stands twice counts once
        if self.classes and any(n >= self.classes for n in found):
            raise BadSample("label", f"{max(found)} of {self.classes} classes")
        if len(found) > self.labels:
            raise BadSample("label", f"{len(found)} labels where the recipe takes {self.labels}")
        if self.classes and self.train and not found:
            raise BadSample("member_missing", str(members.get(member_of.LABEL, "cls")))
        return found

    def __call__(self, members: dict[str, bytes], draw: Draw) -> Row:
        known, body = self.known(members), member_of.image(members)
        out: Row = {"label": np.array(known[0] if known else -1, np.int64)}
        words = CROP_WORDS + 1 + self.randaug.words if self.train else 0
        drawn = [draw(v, words) for v in range(self.views)] if self.train else []
        h = w = 0

        def crops(height: int, width: int) -> list[Crop]:
            nonlocal h, w
            h, w = height, width
            boxes = (
                [self.box(h, w, u) for u in drawn]
                if self.train
                else [middle(h, w, self.data.centre)]
            )
            return [Crop(box, self.size) for box in boxes]

        pixels, boxes = decode_crops(body, crops, self.data.decode if self.train else "exact")
        if self.train:
            views = [self.view(pixels, b, u) for b, u in zip(boxes, drawn, strict=True)]
            out["image"] = np.stack(views) if self.views > 1 else views[0]
        else:
            out["image"] = resize_crop(pixels, boxes[0], self.size, self.data.bicubic)
        if self.labels > 1:
            out["labels"] = np.array(known + [-1] * (self.labels - len(known)), np.int64)
        if self.masks:
            out["mask"] = self.mask(members, h, w)
        return out

    def box(self, h: int, w: int, u: NDArray[np.float64]) -> Box:
        """What the numbers u cut out of a training picture of this height and width."""
        if self.data.pad:
            return centre_box(h, w)
        if self.data.zoom is not None:
            return zoomed_box(h, w, u, self.data.zoom, self.data.spread, self.size)
        return random_resized_crop_box(h, w, u, self.data.crop, self.data.ratio)

    def view(self, pixels: Pixels, box: Box, u: NDArray[np.float64]) -> Pixels:
        """A box of the picture, flipped and augmented by the numbers u."""
        out = resize_crop(pixels, box, self.size, self.data.bicubic)
        if self.data.pad:
            out = padded_crop(out, u, self.data.pad)
        if u[CROP_WORDS] < self.data.flip:
            out = np.ascontiguousarray(out[:, ::-1])
        return self.randaug(out, u[CROP_WORDS + 1 :]) if self.randaug.layers else out

    def mask(self, members: dict[str, bytes], height: int, width: int) -> NDArray[np.uint8]:
        body = member_of.mask(members)
        if body is None:
            return np.zeros((self.size, self.size), np.uint8)
        whole = (decode_image(body).max(2) > 0).astype(np.uint8)
        if whole.shape != (height, width):
            raise BadSample("image_shape", f"a mask of {whole.shape[1]} x {whole.shape[0]}")
        top, left, h, w = middle(height, width, self.data.centre)
        part = Image.fromarray(whole[top : top + h, left : left + w])
        return np.asarray(part.resize((self.size, self.size), Image.Resampling.NEAREST))
