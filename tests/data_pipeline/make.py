"""Small shards of real pictures, and readers that loader processes can import."""

import errno
import io
import os
import signal
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

from vtx_scale.data_pipeline import members as sample
from vtx_scale.data_pipeline.augment.crop import CROP_WORDS, random_resized_crop_box
from vtx_scale.data_pipeline.batches import Batches, InOrder
from vtx_scale.data_pipeline.decode import decode_image, resize_crop
from vtx_scale.data_pipeline.index import Index
from vtx_scale.data_pipeline.opening import open_index
from vtx_scale.data_pipeline.order import Order
from vtx_scale.data_pipeline.storage import File
from vtx_scale.data_pipeline.tools.shards import write_shard
from vtx_scale.data_pipeline.tools.verify import verify

SIZES = (5, 1, 9)  # samples a shard
CHUNK = 2
GREY = np.linspace(0, 65535, 24 * 32).astype(np.uint16).reshape(24, 32)  # a slope of 16 bits


def picture(seed: int, height: int = 24, width: int = 32) -> Image.Image:
    """Smooth colours: a JPEG of it looks like it."""
    corners = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR)


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **({"quality": 90} if kind == "JPEG" else {}) | options)
    return out.getvalue()


def jpeg(seed: int = 0) -> bytes:
    return encoded(picture(seed))


def corrupt(body: bytes) -> bytes:
    """The same JPEG with markers inside its entropy-coded data; its length and its end stay."""
    at = body.index(b"\xff\xda") + 60
    return body[:at] + b"\xff\xd8\xff\xc4\x00\x05\x00\x01\x02" + body[at + 9 :]


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size, with one row of zeros."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(bytes(3 * width + 1)))
        + chunk(b"IEND", b"")
    )


def rows(shard: int, count: int) -> list[tuple[str, dict[str, bytes]]]:
    return [
        (
            f"{shard}-{i:02d}",
            {
                "jpg": jpeg(100 * shard + i),
                "txt": f"picture {shard} {i}".encode(),
                "cls": str(i).encode(),
            },
        )
        for i in range(count)
    ]


def small_set(folder: Path, sizes: tuple[int, ...] = SIZES) -> Path:
    for s, count in enumerate(sizes):
        write_shard(folder / f"s{s}.tar", rows(s, count))
    return folder


@contextmanager
def unreadable(shard: Path, reason: str) -> Iterator[None]:
    """A shard that cannot be read for a while, after it was indexed: its disk gives errors
    (`read_error`), or another bit (`chunk_crc`). In this process.
    """
    plain, body, stat = File.read, bytearray(shard.read_bytes()), shard.stat()

    def read(file: File, offset: int, length: int) -> bytes:
        if Path(file.path) == shard:
            raise OSError(errno.EIO, "Input/output error")
        return plain(file, offset, length)

    def put(at: int) -> None:
        body[at] ^= 1
        shard.write_bytes(body)
        os.utime(shard, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    if reason == "read_error":
        with mock.patch.object(File, "read", read):
            yield
    else:
        put(700)
        yield
        put(700)


def batches_of(
    index: Index, reader: object, batch: int, rank: int = 0, world: int = 1, seed: int = 3
) -> Batches:
    """3 lanes and windows of 2, so that a handful of samples has an order with everything in it."""
    return Batches(index, Order(index.chunk_samples, seed, 3, 2), reader, batch, rank, world, seed)


def small_index(folder: Path) -> Index:
    return open_index(str(folder), chunk=CHUNK)


class Pixels:
    """Random crop and flip to 12 x 12, two views; caption length."""

    def blank(self):
        return {"image": np.zeros((2, 12, 12, 3), np.uint8), "length": np.zeros((), np.int64)}

    def __call__(self, members, draw):
        image = decode_image(sample.image(members))
        views = []
        for view in range(2):
            u = draw(view, CROP_WORDS + 1)
            crop = resize_crop(
                image, random_resized_crop_box(*image.shape[:2], u, (0.3, 1.0), (0.75, 4 / 3)), 12
            )
            views.append(crop[:, ::-1] if u[CROP_WORDS] < 0.5 else crop)
        return {"image": np.stack(views), "length": np.array(len(sample.caption(members)))}


class DiesAt(Pixels):
    """Reading a certain sample ends the process, as a crash of a decoder would."""

    def __init__(self, key: str, log: Path) -> None:
        self.key, self.log = key, log

    def __call__(self, members, draw):
        if members["__key__"] == self.key:
            with self.log.open("a") as f:
                f.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(members, draw)


class Slow(Pixels):
    def __call__(self, members, draw):
        import time

        time.sleep(0.05)
        return super().__call__(members, draw)


def to_text(raw: dict) -> tuple[str, str]:
    """For pipelines of webdataset: key and caption."""
    return raw["__key__"], raw["txt"].decode() if "txt" in raw else raw["__bad__"]


def drop_odd(raw: dict) -> dict | None:
    return raw if int(raw["cls"]) % 2 == 0 else None


def fail_at_three(raw: dict) -> dict:
    if raw["cls"] == b"3":
        raise KeyError("three")
    return raw


def longer(raw: dict) -> dict:
    return {**raw, "txt": raw["txt"] + b"!!"}


def noisy(raw: dict) -> dict:
    """A picture with noise from the three global generators."""
    import random

    import torch

    image = np.asarray(Image.open(io.BytesIO(raw["jpg"])).convert("RGB")).astype(int)
    image += (
        np.random.randint(0, 9, image.shape) + random.randint(0, 9) + int(torch.randint(0, 9, ()))
    )
    return {**raw, "jpg": encoded(Image.fromarray(image.clip(0, 255).astype(np.uint8)), "PNG")}


def masked(folder: Path) -> dict[str, str]:
    """shard/key -> reason of what a loader masks, in tar order."""
    index = open_index(str(folder))
    batch = Batches(index, InOrder(index.n), Pixels(), index.n, 0, 1)[0]
    assert int(batch["valid"].sum()) + len(batch["bad"]) == index.n
    return {f"{e['shard']}/{e['key']}": e["reason"] for e in batch["bad"]}


def verified(folder: Path) -> dict[str, str]:
    return {f"{r['shard']}/{r['key']}": r["reason"] for r in verify(str(folder))}
