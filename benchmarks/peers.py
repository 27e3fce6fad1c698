"""Ways of loading pictures for `benchmarks/loader.py`, ours and those of other libraries: each an
endless stream of batches of the same tars.

All end in RandomResizedCrop(224), bilinear with antialiasing, and flip. "our decode" is the same
function everywhere, `ours_pixels`. What a library wants written in its own format is written once,
before anything is timed. Ours tokenizes the captions too, checks CRCs and keeps the ids.
"""

import importlib
import io
import os
import random
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
import torch
import webdataset as wds
from PIL import Image

from vtx_scale.data_pipeline.augment.crop import random_resized_crop_box
from vtx_scale.data_pipeline.batches import Batches
from vtx_scale.data_pipeline.decode import decode_image, resize_crop
from vtx_scale.data_pipeline.loader import Loader
from vtx_scale.data_pipeline.opening import open_index
from vtx_scale.data_pipeline.order import Order
from vtx_scale.objectives.clip_reader import ClipReader

SIZE, BATCH = 224, 64
LONG = 1 << 24  # samples: an epoch that no measurement ends
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


@dataclass(frozen=True)
class Job:
    """tars: a folder. work: where a library may write its own format. crop: shares of the area.
    workers: processes, or threads where a library has those; 0: this process.
    """

    tars: str
    work: str
    crop: tuple[float, float]
    workers: int

    @property
    def paths(self) -> list[str]:
        return sorted(str(p) for p in Path(self.tars).glob("*.tar"))

    def members(self) -> list[tuple[str, int, int, str]]:
        """(tar, offset, size, caption) of each picture."""
        out = []
        for path in self.paths:
            with tarfile.open(path) as tar:
                texts, pictures = {}, []
                for m in tar:
                    key, _, extension = os.path.basename(m.name).partition(".")
                    if extension == "txt":
                        texts[key] = tar.extractfile(m).read().decode()
                    elif extension in ("jpg", "jpeg"):
                        pictures.append((key, m.offset_data, m.size))
            out += [(path, offset, size, texts.get(key, "")) for key, offset, size in pictures]
        return out

    def bodies(self) -> list[bytes]:
        files = {path: Path(path).read_bytes() for path in self.paths}
        return [files[path][at : at + size] for path, at, size, _ in self.members()]

    def box(self, h: int, w: int) -> tuple[int, int, int, int]:
        return random_resized_crop_box(h, w, np.random.rand(20), self.crop, (0.75, 4 / 3))

    def ours_pixels(self, body: bytes) -> np.ndarray:
        image = decode_image(body)
        return np.ascontiguousarray(flip(resize_crop(image, self.box(*image.shape[:2]), SIZE)))

    def pillow_pixels(self, body: bytes) -> np.ndarray:
        image = Image.open(io.BytesIO(body)).convert("RGB")
        top, left, h, w = self.box(image.height, image.width)
        part = image.crop((left, top, left + w, top + h))
        return np.ascontiguousarray(
            flip(np.asarray(part.resize((SIZE, SIZE), Image.Resampling.BILINEAR)))
        )

    def pillow_float(self, body: bytes) -> np.ndarray:
        """As ToTensor and Normalize do."""
        pixels = (self.pillow_pixels(body).astype(np.float32) / 255 - MEAN) / STD
        return pixels.transpose(2, 0, 1).copy()

    def bare_pixels(self, body: bytes) -> np.ndarray:
        """The limit: nothing but decode, crop, antialiased resize, flip."""
        simplejpeg.decode_jpeg_header(body)
        image = simplejpeg.decode_jpeg(body)
        top, left, h, w = self.box(*image.shape[:2])
        part = torch.from_numpy(image)[top : top + h, left : left + w].permute(2, 0, 1)[None]
        out = torch.nn.functional.interpolate(part, (SIZE, SIZE), mode="bilinear", antialias=True)
        return np.ascontiguousarray(flip(out[0].permute(1, 2, 0).numpy()))


def flip(image: np.ndarray) -> np.ndarray:
    return image[:, ::-1] if random.random() < 0.5 else image


Stream = Iterator[int]  # samples of a batch that was handed over


def limit(job: Job) -> Stream:
    """In one process, without a batch."""
    bodies = job.bodies()
    while True:
        for begin in range(0, len(bodies) - BATCH + 1, BATCH):
            yield len([job.bare_pixels(b) for b in bodies[begin : begin + BATCH]])


def ours(job: Job, decode: str = "exact") -> Stream:
    index = open_index(job.tars)
    reader = ClipReader(SIZE, 77, job.crop, (0.75, 4 / 3), 0.5, "bytes", True, False, decode)
    batches = Batches(index, Order(index.chunk_samples, seed=1), reader, BATCH, 0, 1, 1)
    for batch in Loader(batches, workers=job.workers):
        yield int(batch.valid.sum())


class Member:
    """A dict of members -> (pixels, text), as a picklable map stage."""

    def __init__(self, make: Callable[[bytes], np.ndarray]) -> None:
        self.make = make

    def __call__(self, sample: dict) -> tuple[np.ndarray, str]:
        return self.make(sample.get("jpg") or sample["jpeg"]), sample.get("txt", b"")


def of_webdataset(job: Job, make: str) -> Stream:
    """The usual pipeline; shards are drawn with replacement, so that it has no end."""
    source = wds.WebDataset(job.paths, resampled=True, shardshuffle=False)
    data = source.map(Member(getattr(job, make))).batched(BATCH)
    loader = wds.WebLoader(data, batch_size=None, num_workers=job.workers)
    for images, _ in loader:
        yield len(images)


class Offsets(torch.utils.data.Dataset):
    """Pictures by their places in the tars."""

    def __init__(self, job: Job) -> None:
        self.job, self.places, self.files = job, job.members(), {}

    def __len__(self) -> int:
        return LONG

    def __getitem__(self, i: int) -> tuple[np.ndarray, str]:
        path, offset, size, text = self.places[i % len(self.places)]
        if path not in self.files:
            self.files[path] = os.open(path, os.O_RDONLY)
        return self.job.ours_pixels(os.pread(self.files[path], size, offset)), text


def of_torch(job: Job, module: str, name: str) -> Stream:
    """A map-style set of places, as these loaders are mostly used; in order, which is cheap."""
    loader = getattr(importlib.import_module(module), name)
    for images, _ in loader(Offsets(job), batch_size=BATCH, num_workers=job.workers):
        yield len(images)


def of_litdata(job: Job) -> Stream:
    import litdata

    folder = Path(job.work) / "litdata"
    if not folder.exists():
        rows = [
            {"jpg": body, "txt": text}
            for body, (*_, text) in zip(job.bodies(), job.members(), strict=True)
        ]
        litdata.optimize(
            as_it_is, rows, str(folder), chunk_bytes="64MB", num_workers=1, verbose=False
        )

    data = litdata.StreamingDataset(str(folder), shuffle=True, transform=Member(job.ours_pixels))
    loader = litdata.StreamingDataLoader(
        data, batch_size=BATCH, num_workers=job.workers, persistent_workers=job.workers > 0
    )
    while True:
        for images, _ in loader:
            yield len(images)


def as_it_is(row: dict) -> dict:
    return row


def of_streaming(job: Job) -> Stream:
    import streaming

    folder = Path(job.work) / "mds"
    if not folder.exists():
        with streaming.MDSWriter(out=str(folder), columns={"jpg": "bytes", "txt": "str"}) as out:
            for body, (*_, text) in zip(job.bodies(), job.members(), strict=True):
                out.write({"jpg": body, "txt": text})

    class Pictures(streaming.StreamingDataset):
        def __getitem__(self, i):
            item = super().__getitem__(i)
            return job.ours_pixels(item["jpg"]), item["txt"]

    # one long epoch: each picture many times
    source = streaming.Stream(local=str(folder), repeat=200)
    data = Pictures(streams=[source], shuffle=True, batch_size=BATCH)
    loader = torch.utils.data.DataLoader(
        data, batch_size=BATCH, num_workers=job.workers, persistent_workers=job.workers > 0
    )
    while True:
        for images, _ in loader:
            yield len(images)


def of_spdl(job: Job) -> Stream:
    """Threads of one process."""
    from spdl.pipeline import PipelineBuilder

    data = Offsets(job)

    def numbers() -> Iterator[int]:
        yield from range(LONG)

    def collated(rows: list) -> tuple[torch.Tensor, list[str]]:
        return torch.from_numpy(np.stack([r[0] for r in rows])), [r[1] for r in rows]

    threads = max(1, job.workers)
    builder = PipelineBuilder().add_source(numbers()).pipe(data.__getitem__, concurrency=threads)
    pipeline = builder.aggregate(BATCH).pipe(collated).add_sink(4).build(num_threads=threads)
    with pipeline.auto_stop():
        for images, _ in pipeline:
            yield len(images)


WAYS: dict[str, Callable[[Job], Stream]] = {
    "limit": limit,
    "ours": ours,
    "ours, scaled": lambda job: ours(job, "scaled"),
    "webdataset + our decode": lambda job: of_webdataset(job, "ours_pixels"),
    "webdataset + Pillow": lambda job: of_webdataset(job, "pillow_pixels"),
    "webdataset + Pillow, float32": lambda job: of_webdataset(job, "pillow_float"),
    "torch DataLoader + our decode": lambda job: of_torch(job, "torch.utils.data", "DataLoader"),
    "StatefulDataLoader + our decode": lambda job: of_torch(
        job, "torchdata.stateful_dataloader", "StatefulDataLoader"
    ),
    "LitData + our decode": of_litdata,
    "Streaming + our decode": of_streaming,
    "SPDL + our decode": of_spdl,
}
# name of a library as pip and as Python know it
PACKAGES = {
    "StatefulDataLoader + our decode": ("torchdata", "torchdata"),
    "LitData + our decode": ("litdata", "litdata"),
    "Streaming + our decode": ("mosaicml-streaming", "streaming"),
    "SPDL + our decode": ("spdl", "spdl"),
}
