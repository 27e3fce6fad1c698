"""Microseconds of each augmentation beside Pillow's for the same, interleaved in one run.

    python benchmarks/augment.py [--size 224] [--rounds 9] [--out benchmarks/results/augment.json]

One thread. Pictures are of smooth colours with grain, (size, size, 3) uint8 in planes as a resize
leaves them; Pillow starts from its own image and gives its own image, so that no copy between
arrays and images is counted against it. RandAugment and the jitter make the same numbers of
operations on both sides; multi-crop starts from 500 x 375 pixels. Each round times every operation
on both sides; the times are the fastest round's, ratios are medians over rounds.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from vtx_scale.data_pipeline.augment import affine, colour
from vtx_scale.data_pipeline.augment.crop import CROP_WORDS, random_resized_crop_box
from vtx_scale.data_pipeline.augment.multicrop import VIEW_WORDS, MultiCrop
from vtx_scale.data_pipeline.augment.randaug import RandAugment

FILL = (124, 116, 104)
BICUBIC, NEAREST, AFFINE = (
    Image.Resampling.BICUBIC,
    Image.Resampling.NEAREST,
    Image.Transform.AFFINE,
)


def photo(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (7, 7, 3), dtype=np.uint8))
    base = np.asarray(small.resize((width, height), BICUBIC)) + rng.normal(0, 8, (height, width, 3))
    return base.clip(0, 255).astype(np.uint8)


def pillow_hue(image: Image.Image, turn: float) -> Image.Image:
    h, s, v = image.convert("HSV").split()
    turned = Image.fromarray(np.asarray(h) + np.uint8(int(turn * 255) % 256))
    return Image.merge("HSV", (turned, s, v)).convert("RGB")


def pillow_solarise_add(image: Image.Image, amount: int) -> Image.Image:
    return image.point([min(255, i + amount) if i < 128 else i for i in range(256)] * 3)


def slid(matrix: tuple[float, ...], way: Image.Resampling) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.transform(image.size, AFFINE, matrix, way, fillcolor=FILL)


PILLOW: dict[str, Callable[..., Image.Image]] = {
    "brightness": lambda i, f: ImageEnhance.Brightness(i).enhance(f),
    "contrast": lambda i, f: ImageEnhance.Contrast(i).enhance(f),
    "saturation": lambda i, f: ImageEnhance.Color(i).enhance(f),
    "sharpness": lambda i, f: ImageEnhance.Sharpness(i).enhance(f),
    "hue": pillow_hue,
    "grey": lambda i: i.convert("L").convert("RGB"),
    "invert": ImageOps.invert,
    "solarise": ImageOps.solarize,
    "solarise_add": pillow_solarise_add,
    "posterise": ImageOps.posterize,
    "autocontrast": ImageOps.autocontrast,
    "equalise": ImageOps.equalize,
    "blur": lambda i, r: i.filter(ImageFilter.GaussianBlur(r)),
}


def pillow_jitter(image: Image.Image, u: np.ndarray) -> Image.Image:
    for i, factor in colour.jitter_factors(u, 0.4, 0.4, 0.2, 0.1):
        image = PILLOW[("brightness", "contrast", "saturation", "hue")[i]](image, factor)
    return image


def pillow_randaug(policy: RandAugment, image: Image.Image, u: np.ndarray) -> Image.Image:
    """The same choices made with Pillow's operations (no Cutout, which Pillow lacks)."""
    for which, whether, noise, sign, _, _ in u.reshape(policy.layers, -1).tolist():
        name, level, side = (
            policy.operations[int(which * len(policy.operations))],
            policy.level(noise),
            1 if sign < 0.5 else -1,
        )
        if policy.increasing and whether >= 0.5 or name == "cutout":
            continue
        way = BICUBIC if policy.increasing else NEAREST
        far = side * level * (0.45 * image.width if policy.increasing else 100)
        moves = {
            "shear_x": (1, side * level * 0.3, 0, 0, 1, 0),
            "shear_y": (1, 0, 0, side * level * 0.3, 1, 0),
            "translate_x": (1, 0, far, 0, 1, 0),
            "translate_y": (1, 0, 0, 0, 1, far),
        }
        if name == "rotate":
            image = image.rotate(side * level * 30, way, fillcolor=FILL)
        elif name in moves:
            image = slid(moves[name], way)(image)
        else:
            image = PILLOW[name](image, *policy.arguments(name, level, side))
    return image


def pillow_view(crop: MultiCrop, image: Image.Image, view: int, u: np.ndarray) -> np.ndarray:
    size, scale = (
        (crop.global_size, crop.global_scale) if view < 2 else (crop.local_size, crop.local_scale)
    )
    top, left, h, w = random_resized_crop_box(image.height, image.width, u, scale, crop.ratio)
    image = image.resize((size, size), BICUBIC, box=(left, top, left + w, top + h))
    flips, jitters, greys, blurs, radius, solarises = u[CROP_WORDS : CROP_WORDS + 6].tolist()
    if flips < crop.flip:
        image = ImageOps.mirror(image)
    if jitters < crop.jitter_p:
        image = pillow_jitter(image, u[CROP_WORDS + 6 :])
    if greys < crop.grey:
        image = PILLOW["grey"](image)
    if blurs < crop.blur[min(view, 2)]:
        image = PILLOW["blur"](image, 0.1 + 1.9 * radius)
    if view == 1 and solarises < crop.solarise:
        image = PILLOW["solarise"](image, 128)
    return np.asarray(image)


def timed(function: Callable, *arguments: object, **named: object) -> Callable[[int], object]:
    return lambda i: function(*arguments, **named)


def pairs(size: int) -> dict[str, tuple[Callable[[int], object], Callable[[int], object]]]:
    """name -> (ours, Pillow's), called with the number of the repetition."""
    first = photo(size, size)
    pixels, image = (
        np.ascontiguousarray(first.transpose(2, 0, 1)).transpose(1, 2, 0),
        Image.fromarray(first),
    )
    numbers = np.random.default_rng(1).random((64, 10 * VIEW_WORDS))
    chosen: dict[str, tuple] = {
        "brightness": (1.3,),
        "contrast": (1.3,),
        "saturation": (1.3,),
        "sharpness": (1.3,),
        "hue": (0.1,),
        "grey": (),
        "invert": (),
        "solarise": (128,),
        "solarise_add": (99,),
        "posterise": (3,),
        "autocontrast": (),
        "equalise": (),
    }
    timings: dict[str, tuple[Callable[[int], object], Callable[[int], object]]] = {}
    for name, arguments in chosen.items():
        timings[name] = (
            timed(getattr(colour, name), pixels, *arguments),
            timed(PILLOW[name], image, *arguments),
        )
    for radius in (0.5, 1.0, 2.0):
        timings[f"blur, radius {radius}"] = (
            timed(colour.blur, pixels, radius),
            timed(PILLOW["blur"], image, radius),
        )
    timings["flip"] = timed(affine.flip, pixels), timed(ImageOps.mirror, image)
    matrices = {
        "shear_x": (1, 0.2, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, 0.2, 1, 0),
        "translate_x": (1, 0, 40.3, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, 40.3),
    }
    for bicubic, way in ((True, BICUBIC), (False, NEAREST)):
        how = "bicubic" if bicubic else "nearest"
        timings[f"rotate, {how}"] = (
            timed(affine.rotate, pixels, 20, FILL, bicubic),
            timed(image.rotate, 20, way, fillcolor=FILL),
        )
        for name, matrix in matrices.items():
            by = 0.2 if "shear" in name else 40.3
            timings[f"{name}, {how}"] = (
                timed(getattr(affine, name), pixels, by, FILL, bicubic),
                timed(slid(matrix, way), image),
            )
    timings["jitter 0.4 0.4 0.2 0.1"] = (
        lambda i: colour.jitter(pixels, numbers[i], 0.4, 0.4, 0.2, 0.1),
        lambda i: pillow_jitter(image, numbers[i]),
    )
    deit, augreg = RandAugment(), RandAugment(2, 15, 0, increasing=False)
    for how, policy in (("rand-m9-mstd0.5-inc1", deit), ("RandAugment(2, 15)", augreg)):
        timings[how] = (
            lambda i, p=policy: p(pixels, numbers[i, : p.words]),
            lambda i, p=policy: pillow_randaug(p, image, numbers[i, : p.words]),
        )
    crop, large = MultiCrop(), photo(375, 500)
    large_image = Image.fromarray(large)
    views = [numbers[:, VIEW_WORDS * i : VIEW_WORDS * (i + 1)] for i in range(10)]
    timings["multi-crop, 2 + 8 views"] = (
        lambda i: crop(large, lambda view, n: views[view][i]),
        lambda i: [pillow_view(crop, large_image, v, views[v][i]) for v in range(10)],
    )
    return timings


def main() -> None:
    ask = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ask.add_argument("--size", type=int, default=224)
    ask.add_argument("--rounds", type=int, default=9)
    ask.add_argument("--out", default="benchmarks/results/augment.json")
    args = ask.parse_args()
    torch.set_num_threads(1)
    work = pairs(args.size)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in work}
    for r in range(-1, args.rounds):  # the first round warms caches and counts for nothing
        for name, both in work.items():
            repetitions = range(64 if "and" in name or "jitter" in name else 16)
            row = []
            for make in both:
                before = time.process_time()
                for i in repetitions:
                    make(i)
                row.append((time.process_time() - before) / len(repetitions) * 1e6)
            if r >= 0:
                times[name].append((row[0], row[1]))
    report = {
        "us_per_image": {
            name: {
                "ours": round(min(t[0] for t in rows), 1),
                "pillow": round(min(t[1] for t in rows), 1),
                "pillow / ours": round(statistics.median(t[1] / t[0] for t in rows), 2),
            }
            for name, rows in times.items()
        },
        "size": args.size,
        "rounds": args.rounds,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
    }
    print(json.dumps(report, indent=1))
    Path(args.out).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
