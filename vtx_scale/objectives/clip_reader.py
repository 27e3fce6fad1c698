"""Image-text samples to arrays: what CLIP's loader workers do."""

import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data_pipeline.augment.crop import CROP_WORDS, centre_box, random_resized_crop_box
from data_pipeline.decode import decode_image, resize_crop
from data_pipeline.errors import BadSample
from data_pipeline.text import tokenizer

IMAGES = ("jpg", "jpeg", "png", "webp")


@dataclass
class ClipReader:
    """image (S, S, 3) uint8, tokens (T,) int32, label () int64 (-1 where there is none).

    Training: random resized crop and flip; else the short side resized and the centre cropped. The resize is
    bicubic as CLIP's.
    """

    size: int
    context: int
    crop: tuple[float, float]
    ratio: tuple[float, float]
    flip: float
    tokenizer: str
    train: bool
    bicubic: bool = True

    def blank(self) -> dict[str, np.ndarray]:
        return {"image": np.zeros((self.size, self.size, 3), np.uint8), "tokens": np.zeros(self.context, np.int32),
                "label": np.array(-1, np.int64)}

    def __call__(self, members: dict[str, bytes], draw: Callable[[int, int], np.ndarray]) -> dict[str, np.ndarray]:
        body = next((members[x] for x in IMAGES if x in members), None)
        if body is None:
            raise BadSample("member_missing", "image")
        text = caption(members)
        image = decode_image(body)
        h, w = image.shape[:2]
        if self.train:
            u = draw(0, CROP_WORDS + 1)
            box = random_resized_crop_box(h, w, u, self.crop, self.ratio)
        else:
            box = centre_box(h, w)
        pixels = resize_crop(image, box, self.size, self.bicubic)
        if self.train and u[CROP_WORDS] < self.flip:
            pixels = pixels[:, ::-1]
        return {"image": pixels, "tokens": tokenizer(self.tokenizer).encode(text, self.context),
                "label": np.array(label(members), np.int64)}


def caption(members: dict[str, bytes]) -> str:
    """txt, else "caption" of json. Raises BadSample member_missing, text or json."""
    if "txt" in members:
        text = members["txt"][: 1 << 16].decode("utf-8", "replace")
    elif "json" in members:
        try:
            text = json.loads(members["json"]).get("caption") or ""
        except (ValueError, AttributeError, RecursionError):
            raise BadSample("json") from None
    else:
        raise BadSample("member_missing", "text")
    if not isinstance(text, str) or not text.strip():
        raise BadSample("text", "empty")
    return text


def label(members: dict[str, bytes]) -> int:
    """The class number, -1 where there is none."""
    body = members.get("cls", b"").strip()
    return int(body) if body.isdigit() else -1
