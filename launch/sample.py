"""Pictures that a run draws, as PNG files; for captions where it reads them."""

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vtx_scale.data_pipeline.decode import resize_crop
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.launch.open_run import OpenRun, open_run

AT_ONCE = 16  # pictures
Picture = NDArray[np.uint8]  # (S, S, 3)


def run(args: argparse.Namespace) -> int:
    if args.count < 1 or args.temperature <= 0 or not 1 <= args.keep:
        raise UserError("--count and --keep are 1 or more, --temperature is above 0.")
    opened = open_run(args.folder)
    probes = opened.probes
    if "sample" in probes and not args.text:
        raise UserError(f"{args.folder} draws pictures for captions: add --text CAPTION.")
    if "sample" not in probes and ("complete" not in probes or args.text or args.rerank):
        raise UserError(
            f"{args.folder} draws no pictures for captions: "
            "--text and --rerank are for a run of DALL-E; without them a causal iGPT draws."
        )
    out = Path(args.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty folder: give another one.")
    judge = open_run(args.rerank) if args.rerank else None
    out.mkdir(parents=True, exist_ok=True)
    for c, caption in enumerate(args.text or [""]):
        pictures: list[Picture] = []
        while len(pictures) < args.count:
            pictures += draw(
                opened,
                caption,
                c * args.count + len(pictures),
                min(AT_ONCE, args.count - len(pictures)),
                args,
            )
        if judge is not None:
            pictures = best(judge, caption, pictures)[: args.keep]
        for i, pixels in enumerate(pictures):
            path = out / f"{c:03d}-{i:03d}.png"
            Image.fromarray(np.asarray(pixels)).save(path)
            print(path)
    return 0


def draw(
    opened: OpenRun, caption: str, first: int, count: int, args: argparse.Namespace
) -> list[Picture]:
    """Pictures `first`, `first` + 1, ... of the seed, uint8 (S, S, 3)."""
    if "sample" in opened.probes:
        pixels = opened.probes["sample"]([caption] * count, args.seed, args.temperature, first)
    else:
        side = opened.recipe.objective.resolution
        empty = torch.zeros(count, side, side, 3, dtype=torch.uint8)
        pixels = opened.probes["complete"](empty, 0, args.seed, args.temperature, first)
    return list(pixels.round().to(torch.uint8).numpy())


def best(judge: OpenRun, caption: str, pictures: list[Picture]) -> list[Picture]:
    """By the cosine between caption and picture, the highest first (Ramesh
    et al. 2021, section 2.6).
    """
    if "encode_text" not in judge.probes:
        raise UserError(f"{judge.folder} reads no texts: --rerank takes a run of CLIP or SigLIP.")
    side = judge.recipe.objective.resolution
    small = np.stack(
        [resize_crop(np.asarray(p), (0, 0, *p.shape[:2]), side, True) for p in pictures]
    )
    score = judge.probes["encode_image"](small) @ judge.probes["encode_text"]([caption])[0]
    return [pictures[i] for i in score.argsort(descending=True, stable=True).tolist()]
