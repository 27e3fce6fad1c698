"""Sheets for people: pictures large enough to be seen, with words under each."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Pixels = NDArray[np.uint8]
Cell = tuple[Pixels, str]  # a picture (H, W, 3), and what stands under it, a line each
SIDE = 128  # pixels that a picture has at least
LETTERS, LINE, GAP = 12, 15, 6  # height of letters and lines, and between pictures, in pixels
# viridis at 0, 1/4 .. 1
COLOURS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
NAMED, COUNTED = 40, 16  # classes up to which a matrix has names, and numbers in its squares


def coloured(x: Tensor) -> Tensor:
    """[0, 1] -> uint8 (..., 3), between the nearest two of COLOURS."""
    stops = torch.tensor(COLOURS, dtype=torch.float32)
    at = x.float().clamp(0, 1) * (len(stops) - 1)
    low = at.long().clamp(max=len(stops) - 2)
    return torch.lerp(stops[low], stops[low + 1], (at - low)[..., None]).round().to(torch.uint8)


def enlarged(x: Tensor, size: int) -> Tensor:
    """(..., grid, grid) -> (..., size, size), the nearest."""
    at = torch.arange(size) * x.shape[-1] // size
    return x[..., at, :][..., at]


def magnified(pixels: Pixels, side: int = SIDE) -> Pixels:
    """(H, W, 3) so many whole times as large that no side is below `side`."""
    times = -(-side // min(pixels.shape[:2]))
    return pixels.repeat(times, axis=0).repeat(times, axis=1) if times > 1 else pixels


def sheet(rows: Sequence[Sequence[Cell]], side: int = SIDE) -> Pixels:
    """Rows of cells, of pictures of one size, as one picture (H, W, 3)."""
    pictures = [[(magnified(pixels, side), words) for pixels, words in row] for row in rows]
    high, wide = pictures[0][0][0].shape[:2]
    lines = max(words.count("\n") + 1 for row in rows for _, words in row)
    tall = high + lines * LINE + GAP
    whole = Image.new(
        "RGB", (max(map(len, rows)) * (wide + GAP) + GAP, len(rows) * tall + GAP), "white"
    )
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(LETTERS)
    for i, row in enumerate(pictures):
        for k, (pixels, words) in enumerate(row):
            x, y = GAP + k * (wide + GAP), GAP + i * tall
            whole.paste(Image.fromarray(pixels), (x, y))
            for n, line in enumerate(words.split("\n")):
                pen.text((x, y + high + n * LINE), fitted(line, wide), "black", font)
    return np.asarray(whole)


def fitted(line: str, wide: int) -> str:
    """A line cut to so many pixels."""
    font, line = ImageFont.load_default(LETTERS), " ".join(line.split())
    if font.getlength(line) <= wide:
        return line
    while line and font.getlength(f"{line}...") > wide:
        line = line[:-1]
    return f"{line}..."


def matrix(counts: Tensor, names: Sequence[str]) -> Pixels:
    """A confusion matrix (K, K) as a picture: a row a true class, a column an answer, coloured by
    the share of the row.
    """
    K = len(counts)
    size = max(6, min(28, 640 // K))
    margin = (100 if K <= NAMED else 0) + LINE + GAP
    share = counts / counts.sum(1, keepdim=True).clamp(min=1)
    squares = enlarged_squares(coloured(share), size)
    whole = Image.new("RGB", (margin + K * size + GAP,) * 2, "white")
    whole.paste(Image.fromarray(squares.numpy()), (margin, margin))
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(LETTERS)
    pen.text((margin, 0), "answer", "black", font)
    upright(whole, "true", (0, margin + K * size - 60), 60)
    for i, name in enumerate(names if K <= NAMED else ()):
        at = margin + i * size
        pen.text((LINE + GAP, at + (size - LETTERS) // 2), fitted(name, 96), "black", font)
        upright(whole, name, (at + (size - LINE) // 2, LINE + GAP), 96)
    for i, row in enumerate(counts.tolist() if K <= COUNTED else []):
        for k, count in enumerate(row):
            ink = "black" if share[i, k] > 0.5 else "white"
            centre = (margin + (k + 0.5) * size, margin + (i + 0.5) * size)
            if count:
                pen.text(centre, str(count), ink, ImageFont.load_default(10), anchor="mm")
    return np.asarray(whole)


def enlarged_squares(colours: Tensor, size: int) -> Tensor:
    """(K, K, 3) -> (K size, K size, 3)."""
    return colours.repeat_interleave(size, 0).repeat_interleave(size, 1)


def upright(whole: Image.Image, words: str, at: tuple[int, int], long: int) -> None:
    """Write upwards into a strip of `long` pixels that begins at its upper left corner."""
    strip = Image.new("RGB", (long, LINE), "white")
    ImageDraw.Draw(strip).text(
        (0, 0), fitted(words, long), "black", ImageFont.load_default(LETTERS)
    )
    whole.paste(strip.rotate(90, expand=True), at)
