"""An epoch from a node's cache beside the same epoch from a local folder, interleaved in one run.

    python benchmarks/cache.py [--data FOLDER_OF_TARS] [--rounds 9]
                               [--out benchmarks/results/cache.json]

The shards of the cached side lie behind a storage that is no folder, as a bucket does; the first
epoch fills the cache, and the second, which the rounds measure, fetches nothing. Samples per
CPU-second of this process, with its prefetcher, which reads, decodes, crops to 224 and collates;
wall time too, which others on the machine disturb. Ratios are medians over rounds. Without --data
the script makes 512 pictures of 500 x 375.
"""

import argparse
import io
import json
import random
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vtx_scale.data_pipeline.batches import Batches
from vtx_scale.data_pipeline.cache import NodeCache
from vtx_scale.data_pipeline.index import Index
from vtx_scale.data_pipeline.loader import Loader
from vtx_scale.data_pipeline.opening import open_index
from vtx_scale.data_pipeline.order import Order
from vtx_scale.data_pipeline.prefetch import Caching
from vtx_scale.data_pipeline.storage import Folder, Head
from vtx_scale.data_pipeline.tools.shards import write_shard
from vtx_scale.objectives.clip_reader import ClipReader

BATCH, TARGET = 64, 0.95


class Elsewhere:
    """A folder that is read as a bucket is: by requests, which it counts."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.requests = Folder(folder), 0

    def __str__(self) -> str:
        return f"elsewhere:{self.folder}"

    def get_range(self, name: str, offset: int, length: int, tag: str | None = None) -> bytes:
        self.requests += 1
        return self.folder.get_range(name, offset, length)

    def head(self, name: str) -> Head | None:
        return self.folder.head(name)


def pictures(folder: Path) -> Path:
    """512 JPEGs with noise, some 70 KB each, in 8 shards."""
    rng = np.random.default_rng(0)
    for shard in range(8):
        rows = []
        for i in range(64):
            corners = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
            image = Image.fromarray(corners).resize((500, 375), Image.Resampling.BICUBIC)
            noisy = np.asarray(image).astype(np.int16) + rng.normal(0, 9, (375, 500, 3))
            out = io.BytesIO()
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
            rows.append((f"{shard}-{i:03d}", {"jpg": out.getvalue(), "txt": b"a picture"}))
        write_shard(folder / f"part-{shard}.tar", rows)
    return folder


def epoch(index: Index, caching: Caching | None, number: int) -> tuple[float, float]:
    """Samples (per CPU-second, per second) of one epoch."""
    reader = ClipReader(
        size=224,
        context=77,
        crop=(0.9, 1.0),
        ratio=(0.75, 4 / 3),
        flip=0.5,
        tokenizer="bytes",
        train=True,
        bicubic=False,
    )
    order = Order(index.chunk_samples, seed=1)
    batches = Batches(index, order, reader, BATCH, 0, 1, seed=1, caching=caching)
    steps = order.n // BATCH
    loader = Loader(batches, start=number * steps, stop=(number + 1) * steps)
    wall, cpu = time.perf_counter(), time.process_time()
    done = sum(int(batch.valid.sum()) for batch in loader)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    loader.close()
    return done / cpu, done / wall


def main() -> None:
    ask = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ask.add_argument("--data", default="")
    ask.add_argument("--rounds", type=int, default=9)
    ask.add_argument("--out", default="benchmarks/results/cache.json")
    args = ask.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="vtx-bench-") as scratch:
        shards = Path(args.data) if args.data else pictures(Path(scratch) / "shards")
        local = open_index(str(shards), chunk=64)
        root = Elsewhere(shards)
        remote = replace(local, root=root, shard_tag=np.zeros_like(local.shard_tag))
        caching = Caching(Path(scratch) / "cache", 200 * 10**9)
        if fault := NodeCache(caching.folder, caching.limit, remote.digest).prepare():
            raise SystemExit(fault)
        ways = {"folder": (local, None), "cache": (remote, caching)}
        for index, how in ways.values():  # fills the cache, and counts for nothing
            epoch(index, how, 0)
        filled = root.requests
        rates: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for r in range(args.rounds):
            for name in random.Random(r).sample(list(ways), len(ways)):
                rates[name].append(epoch(*ways[name], 1))
        fetched = root.requests - filled

    def ratio(column: int) -> dict[str, float]:
        pairs = zip(rates["cache"], rates["folder"], strict=True)
        found = sorted(a[column] / b[column] for a, b in pairs)
        return {"median": statistics.median(found), "min": found[0], "max": found[-1]}

    report = {
        "samples_per_cpu_second": {k: statistics.median(x[0] for x in v) for k, v in rates.items()},
        "samples_per_second": {k: statistics.median(x[1] for x in v) for k, v in rates.items()},
        "cache / folder, CPU": ratio(0),
        "cache / folder, wall": ratio(1),
        "target": TARGET,
        "fetched in the first epoch": filled,
        "fetched in the rounds": fetched,
        "rounds": args.rounds,
        "samples": local.n,
        "torch": torch.__version__,
    }
    print(json.dumps(report, indent=1))
    Path(args.out).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
