"""Toy shards: real JPEGs of composed shapes with captions, classes, boxes and masks."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from vtx_scale.data_pipeline.paths import local_path
from vtx_scale.data_pipeline.tools.shards import Sample, write_lines, write_shard

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 205, 40),
}
SHAPES = ("circle", "square", "triangle")
SIZES = {"small": 0.13, "large": 0.21}  # half a side, as a share of the picture's
RELATIONS = ("left of", "above")
CLASSES = [f"{c} {s}" for c in COLOURS for s in SHAPES]


def draw_shape(
    picture: ImageDraw.ImageDraw, shape: str, box: tuple[float, ...], fill: int | tuple[int, ...]
) -> None:
    x0, y0, x1, y1 = box
    if shape == "circle":
        picture.ellipse(box, fill=fill)
    elif shape == "square":
        picture.rectangle(box, fill=fill)
    else:
        picture.polygon([(x0, y1), (x1, y1), ((x0 + x1) / 2, y0)], fill=fill)


def compose(rng: np.random.Generator, size: int) -> dict[str, bytes]:
    """One sample: two shapes, one left of or above the other, on a noisy background."""
    relation = RELATIONS[rng.integers(2)]
    ground = int(rng.integers(170, 240))
    noise = rng.integers(-8, 9, (size, size, 3)) + ground
    image = Image.fromarray(noise.clip(0, 255).astype(np.uint8))
    mask = Image.new("L", (size, size), 0)
    objects: list[dict[str, Any]] = []
    for i in range(2):
        colour, shape = list(COLOURS)[rng.integers(len(COLOURS))], SHAPES[rng.integers(len(SHAPES))]
        name = list(SIZES)[rng.integers(len(SIZES))]
        half = SIZES[name] * size
        along = (0.27 if i == 0 else 0.73) * size + rng.uniform(-0.04, 0.04) * size
        across = rng.uniform(0.3, 0.7) * size
        x, y = (along, across) if relation == "left of" else (across, along)
        box = (x - half, y - half, x + half, y + half)
        draw_shape(ImageDraw.Draw(image), shape, box, COLOURS[colour])
        draw_shape(ImageDraw.Draw(mask), shape, box, i + 1)
        objects.append(
            {
                "size": name,
                "colour": colour,
                "shape": shape,
                "class": CLASSES.index(f"{colour} {shape}"),
                "box": [round(float(v), 2) for v in box],
            }
        )
    words = [f"a {o['size']} {o['colour']} {o['shape']}" for o in objects]
    caption = f"{words[0]} {relation} {words[1]}"
    label = objects[0]["class"]
    about = {
        "caption": caption,
        "class": label,
        "class_name": CLASSES[label],
        "objects": objects,
        "boxes": [o["box"] for o in objects],
    }
    return {
        "jpg": encoded(image, "JPEG", quality=90),
        "txt": caption.encode(),
        "cls": str(label).encode(),
        "json": json.dumps(about).encode(),
        "mask.png": encoded(mask, "PNG"),
    }


def encoded(image: Image.Image, kind: str, **options: int) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def make_toy(
    folder: Path, samples: int = 256, shards: int = 4, size: int = 64, seed: int = 0
) -> Path:
    """Write `samples` samples in `shards` tars, and classes.txt;
    the same bytes for the same arguments.
    """
    rng = np.random.default_rng(seed)
    folder = local_path(folder)
    for s in range(shards):
        count = samples * (s + 1) // shards - samples * s // shards
        pictures: list[Sample] = [(f"{s:03d}-{i:05d}", compose(rng, size)) for i in range(count)]
        write_shard(folder / f"toy-{s:03d}.tar", pictures)
    write_lines(folder / "classes.txt", CLASSES)
    return folder
