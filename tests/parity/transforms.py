"""The five transforms of torchvision that image libraries prepare pictures with, over Pillow, by
torchvision's published rules: for machines whose torch has no torchvision that fits.
"""

from enum import Enum

import numpy as np
import torch
from PIL import Image

InterpolationMode = Enum(
    "InterpolationMode",
    {
        x.upper().replace("-", "_"): x
        for x in ("nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos")
    },
)


class Compose:
    def __init__(self, transforms):
        self.transforms = transforms

    def __call__(self, picture):
        for transform in self.transforms:
            picture = transform(picture)
        return picture


class Resize(torch.nn.Module):
    """A number is the short side; the long one is cut to a whole number."""

    def __init__(self, size, interpolation=InterpolationMode.BILINEAR, **_):
        super().__init__()
        self.size, self.how = size, Image.Resampling[interpolation.name]

    def forward(self, picture):
        w, h = picture.size
        size = self.size
        if not isinstance(size, int) and len(size) == 1:
            (size,) = size
        if isinstance(size, int):
            short, long = min(w, h), max(w, h)
            if short == size:
                return picture
            new = int(size * long / short)
            w, h = (size, new) if w <= h else (new, size)
        else:
            h, w = size
        return picture.resize((w, h), self.how)


class CenterCrop(torch.nn.Module):
    def __init__(self, size):
        super().__init__()
        self.size = (size, size) if isinstance(size, int) else tuple(size)

    def forward(self, picture):
        (w, h), (height, width) = picture.size, self.size
        top, left = round((h - height) / 2), round((w - width) / 2)
        return picture.crop((left, top, left + width, top + height))


def to_tensor(picture):
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


class ToTensor:
    def __call__(self, picture):
        return to_tensor(picture)


class Normalize(torch.nn.Module):
    def __init__(self, mean, std):
        super().__init__()
        self.mean, self.std = (torch.as_tensor(x).reshape(3, 1, 1) for x in (mean, std))

    def forward(self, pixels):
        return (pixels - self.mean) / self.std
