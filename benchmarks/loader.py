"""Samples per CPU-second of the loader beside bare decoding and webdataset pipelines,
interleaved in one run.

    python benchmarks/loader.py --data FOLDER_OF_TARS [--rounds 7] [--samples 512]
                                [--out benchmarks/results/loader.json]

CPU time is of this process, in which every pipeline reads, decodes and collates: what worker
processes add on top is not in it. All end in RandomResizedCrop(224), bilinear with antialiasing,
and flip on the same JPEGs, gone through again where there are fewer than --samples; "float32" adds
the normalise, as ToTensor and Normalize do. Ratios are medians over rounds.
"""

import argparse
import glob
import io
import json
import os
import random
import statistics
import time
from pathlib import Path

import numpy as np
import simplejpeg
import torch
import webdataset as wds
from PIL import Image

from vtx_scale.data_pipeline.augment.crop import random_resized_crop_box
from vtx_scale.data_pipeline.decode import decode_image, resize_crop
from vtx_scale.data_pipeline.loader import Batches, Loader
from vtx_scale.data_pipeline.opening import open_index
from vtx_scale.data_pipeline.order import Order
from vtx_scale.objectives.clip_reader import ClipReader

SIZE, BATCH = 224, 64
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def box_of(h: int, w: int) -> tuple[int, int, int, int]:
    return random_resized_crop_box(h, w, np.random.rand(20), (0.9, 1.0), (0.75, 4 / 3))


def flip(image: np.ndarray) -> np.ndarray:
    return image[:, ::-1] if random.random() < 0.5 else image


def ours_pixels(body: bytes) -> np.ndarray:
    image = decode_image(body)
    return np.ascontiguousarray(flip(resize_crop(image, box_of(*image.shape[:2]), SIZE)))


def pillow_pixels(body: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(body)).convert("RGB")
    top, left, h, w = box_of(image.height, image.width)
    resized = image.crop((left, top, left + w, top + h)).resize(
        (SIZE, SIZE), Image.Resampling.BILINEAR
    )
    return np.ascontiguousarray(flip(np.asarray(resized)))


def pillow_float(body: bytes) -> np.ndarray:
    return ((pillow_pixels(body).astype(np.float32) / 255 - MEAN) / STD).transpose(2, 0, 1).copy()


def bare_pixels(body: bytes) -> np.ndarray:
    """The limit: nothing but decode, crop, antialiased resize, flip."""
    simplejpeg.decode_jpeg_header(body)
    image = simplejpeg.decode_jpeg(body)
    top, left, h, w = box_of(*image.shape[:2])
    part = torch.from_numpy(image)[top : top + h, left : left + w].permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(part, (SIZE, SIZE), mode="bilinear", antialias=True)
    return np.ascontiguousarray(flip(resized[0].permute(1, 2, 0).numpy()))


cpu = time.process_time


def bodies(paths: list[str], n: int) -> list[bytes]:
    found = []
    for sample in wds.WebDataset(paths, shardshuffle=False).repeat():
        body = sample.get("jpg") or sample.get("jpeg")
        if body:
            found.append(body)
        if len(found) == n:
            break
    return found


def first(sample: dict) -> bytes:
    return sample.get("jpg") or sample.get("jpeg")


class Pixels:
    """sample -> (pixels, text), as a picklable map stage."""

    def __init__(self, make):
        self.make = make

    def __call__(self, sample):
        return self.make(first(sample)), sample.get("txt", b"").decode()


def of_webdataset(paths, make, n):
    """The usual pipeline, in this process: its reading, decoding, collating."""
    source = wds.WebDataset(paths, shardshuffle=False).repeat().map(Pixels(make)).batched(BATCH)
    done = 0
    for images, _ in source:
        done += len(images)
        if done >= n:
            break
    return done


def of_ours(index, seed, n):
    reader = ClipReader(
        size=SIZE,
        context=77,
        crop=(0.9, 1.0),
        ratio=(0.75, 4 / 3),
        flip=0.5,
        tokenizer="bytes",
        train=True,
        bicubic=False,
    )
    batches = Batches(index, Order(index.chunk_samples, seed=seed), reader, BATCH, 0, 1, seed)
    loader = Loader(batches, stop=n // BATCH, workers=0)
    return sum(int(b.valid.sum()) for b in loader)


def main() -> None:
    ask = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ask.add_argument("--data", required=True)
    ask.add_argument("--rounds", type=int, default=7)
    ask.add_argument("--samples", type=int, default=512)
    ask.add_argument("--out", default="benchmarks/results/loader.json")
    args = ask.parse_args()
    torch.set_num_threads(1)
    paths = sorted(glob.glob(os.path.join(args.data, "*.tar")))
    index = open_index(args.data)
    n = max(BATCH, args.samples // BATCH * BATCH)
    raw = bodies(paths, n)
    ways = {
        "limit": lambda r: len([bare_pixels(b) for b in raw]),
        "ours": lambda r: of_ours(index, r, n),
        "webdataset + Pillow": lambda r: of_webdataset(paths, pillow_pixels, n),
        "webdataset + Pillow, float32": lambda r: of_webdataset(paths, pillow_float, n),
        "webdataset + our decode": lambda r: of_webdataset(paths, ours_pixels, n),
    }
    rates: dict[str, list[float]] = {k: [] for k in ways}
    for r in range(-1, args.rounds):  # the first round warms caches and counts for nothing
        for name in random.Random(r).sample(list(ways), len(ways)):
            before = cpu()
            done = ways[name](max(r, 0))
            if r >= 0:
                rates[name].append(done / (cpu() - before))

    order = Order(index.chunk_samples, seed=1)
    order.ids(order.share(0, 1024, 0, 1))
    before = time.process_time()
    for step in range(20):
        positions = order.share(step, 1024, 0, 1)
        order.ids(positions), order.epochs(positions)
    order_us = (time.process_time() - before) / (20 * 1024) * 1e6

    def ratio(other: str) -> float:
        return statistics.median(a / b for a, b in zip(rates["ours"], rates[other], strict=True))

    report = {
        "samples_per_cpu_second": {
            k: {"median": statistics.median(v), "min": min(v), "max": max(v)}
            for k, v in rates.items()
        },
        "T1 ours / limit": ratio("limit"),
        "T2 ours / webdataset + Pillow": ratio("webdataset + Pillow"),
        "T2 ours / webdataset + Pillow, float32": ratio("webdataset + Pillow, float32"),
        "T3 ours / webdataset + our decode": ratio("webdataset + our decode"),
        "T6 order us a sample": order_us,
        "targets": {"T1": 0.90, "T2": [1.5, 2.0], "T3": 1.15, "T6": 5},
        "rounds": args.rounds,
        "samples": n,
        "torch": torch.__version__,
    }
    print(json.dumps(report, indent=1))
    Path(args.out).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
