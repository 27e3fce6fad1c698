"""The 1,797 handwritten digits that scikit-learn ships, as captioned JPEG shards for the demo."""

from pathlib import Path

import numpy as np
from PIL import Image

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.paths import local_path
from vtx_scale.data_pipeline.tools.shards import Sample, write_lines, write_shard
from vtx_scale.data_pipeline.tools.toy import encoded

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = ("a handwritten {}", "the digit {}", "a scan of the number {}")


def make_digits(folder: Path, size: int = 32, shard: int = 256) -> Path:
    """folder/train and folder/val (every fifth digit), and classes.txt.

    Raises UserError without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError(
            "The digits come with scikit-learn: pip install 'vtx-scale[demo]'."
        ) from None
    folder = local_path(folder)
    digits = load_digits()
    parts: dict[str, list[Sample]] = {"train": [], "val": []}
    for i, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        grey = Image.fromarray((255 - pixels * 255 / 16).astype(np.uint8))
        grey = grey.resize((size, size), Image.Resampling.BICUBIC)
        caption = TEMPLATES[i % len(TEMPLATES)].format(NAMES[label])
        parts["val" if i % 5 == 0 else "train"].append(
            (
                f"digit-{i:04d}",
                {
                    "jpg": encoded(grey.convert("RGB"), "JPEG", quality=95),
                    "txt": caption.encode(),
                    "cls": str(label).encode(),
                },
            )
        )
    for part, samples in parts.items():
        for s in range(0, len(samples), shard):
            write_shard(folder / part / f"{part}-{s // shard:03d}.tar", samples[s : s + shard])
    write_lines(folder / "classes.txt", NAMES)
    return folder
