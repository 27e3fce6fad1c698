"""Pictures that a run draws, as PNG files; for captions where it reads them."""

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vtx_scale.data_pipeline.decode import resize_crop
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.paths import local_path
from vtx_scale.data_pipeline.publish import whole
from vtx_scale.interop.files import refuse_taken
from vtx_scale.launch.open_run import OpenRun, open_run
from vtx_scale.launch.reading import reading_of
from vtx_scale.launch.several import is_rank, run_together, speaks
from vtx_scale.trainer.output import say

AT_ONCE = 16  # pictures
Picture = NDArray[np.uint8]  # (S, S, 3)


def run(args: argparse.Namespace) -> int:
    reading, out = reading_of(args.keys), local_path(args.out)
    check_numbers(args)
    if not is_rank():
        refuse_taken(out)
    if (reading.world or 1) > 1 and not is_rank():
        return run_together(args.words, reading.world or 1)
    # half a surrogate pair, which a shell can pass, is no text
    texts = [text.encode("utf-8", "replace").decode() for text in args.text]
    opened = open_run(args.folder, reading.device, reading.precision)
    check_drawer(opened, args)
    judge = None
    if args.rerank:
        judge = open_run(args.rerank, reading.device, reading.precision)
        if not {"encode_text", "encode_image"} <= set(judge.probes):
            raise UserError(
                f"{judge.folder} reads no texts: --rerank takes a run of CLIP or SigLIP."
            )
    for reader in (opened, judge):
        if reader is not None and texts:
            report_cut(reader, texts)
    with folder_for(out) if speaks() else contextlib.nullcontext():
        for c, caption in enumerate(texts or [""]):
            pictures: list[Picture] = []
            while len(pictures) < args.count:
                first, count = c * args.count + len(pictures), args.count - len(pictures)
                pictures += draw(opened, caption, first, min(AT_ONCE, count), args)
            if judge is not None:
                pictures = best(judge, caption, pictures)[: args.keep or 1]
            for i, pixels in enumerate(pictures if speaks() else ()):
                path = out / f"{c:03d}-{i:03d}.png"
                with whole(path) as part:
                    Image.fromarray(np.asarray(pixels)).save(part)
                print(path, flush=True)
    return 0


def check_numbers(args: argparse.Namespace) -> None:
    """Raises UserError for a number that draws nothing, or is not used."""
    keep = 1 if args.keep is None else args.keep
    if args.count < 1 or keep < 1 or not 0 < args.temperature < float("inf"):
        raise UserError("--count and --keep are 1 or more, --temperature is a number above 0.")
    if args.keep is not None and not args.rerank:
        raise UserError("--keep is for --rerank RUN, which says what to keep: add it.")


def check_drawer(opened: OpenRun, args: argparse.Namespace) -> None:
    """Raises UserError where the run does not draw what is asked for."""
    if "sample" in opened.probes and not args.text:
        raise UserError(f"{args.folder} draws pictures for captions: add --text CAPTION.")
    if "sample" not in opened.probes and (
        "complete" not in opened.probes or args.text or args.rerank
    ):
        raise UserError(
            f"{args.folder} draws no pictures for captions: "
            "--text and --rerank are for a run of DALL-E; without them a causal iGPT draws."
        )


def report_cut(reader: OpenRun, texts: list[str]) -> None:
    """One line on stderr where a run reads less than the whole of a caption.

    Raises UserError where its tokenizer cannot be opened.
    """
    if "cut" not in reader.probes:
        return
    cut, fit = reader.probes["cut"](texts)
    if cut:
        say(
            f"vtx: {reader.folder}: {cut} of {len(texts)} captions were longer than {fit} tokens "
            "and were cut."
        )


@contextlib.contextmanager
def folder_for(out: Path) -> Iterator[None]:
    """`out` is there inside; none that is empty is left behind."""
    there = out.is_dir()
    out.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        if not there and not any(out.iterdir()):
            out.rmdir()


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
    side = judge.recipe.objective.resolution
    small = np.stack(
        [resize_crop(np.asarray(p), (0, 0, *p.shape[:2]), side, True) for p in pictures]
    )
    score = judge.probes["encode_image"](small) @ judge.probes["encode_text"]([caption])[0]
    return [pictures[i] for i in score.argsort(descending=True, stable=True).tolist()]
