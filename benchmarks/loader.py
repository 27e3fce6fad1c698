"""Samples per CPU-second of the loader beside bare decoding and other libraries' loaders,
interleaved in one run.

    python benchmarks/loader.py --data FOLDER_OF_TARS [--crop 0.9 1] [--side 1500] [--rounds 7]
                                [--samples 512] [--workers 2] [--only ours limit ...]
                                [--out benchmarks/results/loader.json]

Every way (`peers.py`) is a process of its own with an endless stream of batches of 64; it reads
ahead until its queues are full, then a round takes --samples from it and waits until they are full
again. CPU time is that of its whole process group, by /proc: what its loader processes take is in
it, and reading ahead cancels. Ratios are medians over rounds. A library that is not installed is
skipped with a line.

--side 1500 makes a set of large pictures first, each 3 x 3 of the pictures of --data, and adds the
same set brought to a short side of 512. Where jpegtran is installed the same pictures with restart
markers are a row of their own.
"""

import argparse
import importlib.metadata
import importlib.util
import io
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from peers import BATCH, PACKAGES, SIZE, WAYS, Job
from PIL import Image

from vtx_scale.data_pipeline.crops import Crop, decode_crop, denominator, on_grid
from vtx_scale.data_pipeline.decode import decode_image, resize_crop
from vtx_scale.data_pipeline.opening import open_index
from vtx_scale.data_pipeline.order import Order
from vtx_scale.data_pipeline.restarts import with_restarts
from vtx_scale.data_pipeline.tools.shards import write_shard

TICKS = os.sysconf("SC_CLK_TCK")
QUIET, PATIENCE = 0.6, 20.0  # seconds without work that say that queues are full; to wait for them
TARGETS = {
    "limit": 0.9,
    "webdataset + Pillow": 1.5,
    "webdataset + Pillow, float32": 2.0,
    "webdataset + our decode": 1.2,
    "StatefulDataLoader + our decode": 1.0,
    "LitData + our decode": 1.0,
    "Streaming + our decode": 1.0,
    "SPDL + our decode": 1.0,
}


def group_seconds(group: int) -> float:
    """CPU seconds of a process group's members and of those of them that have ended."""
    ticks = 0
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == group:
                ticks += sum(map(int, fields[11:15]))
    return ticks / TICKS


class Way:
    """One way of loading, in a process group of its own."""

    def __init__(self, name: str, kind: str, job: Job) -> None:
        self.name = name
        command = [sys.executable, __file__, "--child", kind, "--tars", job.tars]
        command += ["--work", job.work, "--workers", str(job.workers)]
        command += ["--crop", *map(str, job.crop)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def take(self, samples: int) -> int:
        self.process.stdin.write(f"{samples}\n")
        self.process.stdin.flush()
        while line := self.process.stdout.readline():
            if line.startswith("took "):
                return int(line.split()[1])
        raise SystemExit(f"{self.name} ended")

    def settled(self) -> float:
        """CPU seconds so far, once nothing works any more."""
        began = still = time.monotonic()
        last = group_seconds(self.process.pid)
        while time.monotonic() - still < QUIET and time.monotonic() - began < PATIENCE:
            time.sleep(0.05)
            now = group_seconds(self.process.pid)
            if now - last > 0.011:  # a tick now and then is none
                still = time.monotonic()
            last = now
        return last

    def rate(self, samples: int) -> float:
        """Samples a CPU-second."""
        before = self.settled()
        done = self.take(samples)
        return done / (self.settled() - before)

    def close(self) -> None:
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, 9)
            self.process.wait()


def child(kind: str, job: Job) -> None:
    """Takes what it is asked for from its stream, until its input ends."""
    torch.set_num_threads(1)
    stream = WAYS[kind](job)
    for line in sys.stdin:
        done, wanted = 0, int(line)
        while done < wanted:
            done += next(stream)
        print(f"took {done}", flush=True)
    sys.stdout.flush()
    os._exit(0)  # what a library has running ends with its process


def encoded(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90)
    return out.getvalue()


def mosaics(bodies: list[bytes], side: int, count: int) -> list[bytes]:
    """Pictures of side x 3/4 side, each of 3 x 3 of these."""
    w, h = side // 3, side // 4
    tiles = [Image.open(io.BytesIO(b)).convert("RGB").resize((w, h)) for b in bodies]
    out = []
    for k in range(count):
        page = Image.new("RGB", (3 * w, 3 * h))
        for i, t in enumerate(random.Random(k).sample(range(len(tiles)), min(9, len(tiles)))):
            page.paste(tiles[t], (i % 3 * w, i // 3 * h))
        out.append(encoded(page))
    return out


def shorter(body: bytes, side: int) -> bytes:
    image = Image.open(io.BytesIO(body)).convert("RGB")
    share = side / min(image.size)
    size = round(image.width * share), round(image.height * share)
    return encoded(image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0))


def write(folder: Path, bodies: list[bytes], shards: int = 4) -> str:
    folder.mkdir()
    for k in range(shards):
        rows = [(f"{i:06d}", {"jpg": bodies[i], "txt": b"a picture"}) for i in range(len(bodies))]
        write_shard(folder / f"{k:03d}.tar", rows[k::shards])
    return str(folder)


def ways_of(args: argparse.Namespace, work: Path) -> dict[str, tuple[str, Job]]:
    """Name -> kind of `WAYS`, and what it reads."""

    def job(tars: str, name: str, workers: int = args.workers) -> Job:
        (work / name).mkdir(exist_ok=True)
        return Job(tars, str(work / name), tuple(args.crop), workers)

    tars = args.data
    if args.side:
        bodies = job(args.data, "source").bodies()
        tars = write(work / "large", mosaics(bodies, args.side, args.pictures))
    bodies = job(tars, "set").bodies()
    out = {name: (name, job(tars, "set")) for name in WAYS}
    if shutil.which("jpegtran"):
        restarts = write(work / "restarts-tars", [with_restarts(b) for b in bodies])
        out["ours, restarts"] = ("ours", job(restarts, "restarts"))
        out["ours, restarts, scaled"] = ("ours, scaled", job(restarts, "restarts"))
    else:
        print("ours, restarts: skipped, no jpegtran (libjpeg-turbo-progs)", file=sys.stderr)
    if args.side:
        small = write(work / "small-tars", [shorter(b, 512) for b in bodies])
        out["ours, short side 512"] = ("ours", job(small, "small"))
    for name, (package, module) in PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            out.pop(name)
            print(f"{name}: skipped, {package} is not installed", file=sys.stderr)
    return {name: way for name, way in out.items() if not args.only or name in args.only}


def levels(job: Job, crop: tuple[float, float]) -> dict[str, list[float]]:
    """Denominator -> crops, median of the mean difference of `scaled` from exact pixels of the same
    box, largest difference; for outputs of 224, 112, 64 and 32 pixels.
    """
    found: dict[int, list[tuple[float, float]]] = {}
    for body in job.bodies():
        whole = decode_image(body)
        height, width = whole.shape[:2]
        for size in (SIZE, 112, 64, 32):
            box = Job("", "", crop, 0).box(height, width)
            by = denominator([Crop(box, size)])
            if by > 1:
                made = decode_crop(body, lambda h, w, b=box: b, size, False, "scaled")
                at = tuple(by * x for x in on_grid(box, by, height, width))
                far = np.abs(made.astype(int) - resize_crop(whole, at, size))
                found.setdefault(by, []).append((far.mean(), float(far.max())))
    return {
        str(by): [
            len(rows),
            round(statistics.median(r[0] for r in rows), 2),
            max(r[1] for r in rows),
        ]
        for by, rows in sorted(found.items())
    }


def order_us(tars: str) -> float:
    """Microseconds that the order takes a sample."""
    index = open_index(tars)
    order = Order(index.chunk_samples, seed=1)
    order.ids(order.share(0, 1024, 0, 1))
    before = time.process_time()
    for step in range(20):
        positions = order.share(step, 1024, 0, 1)
        order.ids(positions), order.epochs(positions)
    return (time.process_time() - before) / (20 * 1024) * 1e6


def measured(ways: list[Way], rounds: int, samples: int) -> dict[str, list[float]]:
    """Rates of each round; the first round warms caches and counts for nothing."""
    rates: dict[str, list[float]] = {way.name: [] for way in ways}
    for r in range(-1, rounds):
        for way in random.Random(r).sample(ways, len(ways)):
            rate = way.rate(samples)
            if r >= 0:
                rates[way.name].append(rate)
        print(f"round {r + 1} of {rounds}", file=sys.stderr, flush=True)
    return rates


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def versions() -> dict[str, str]:
    names = ["torch", "webdataset", *(package for package, _ in PACKAGES.values())]
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def asked() -> argparse.Namespace:
    ask = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ask.add_argument("--data", default="")
    ask.add_argument("--crop", type=float, nargs=2, default=(0.9, 1.0))
    ask.add_argument("--side", type=int, default=0)
    ask.add_argument("--pictures", type=int, default=128, help="of the large set")
    ask.add_argument("--rounds", type=int, default=7)
    ask.add_argument("--samples", type=int, default=512)
    ask.add_argument("--workers", type=int, default=2)
    ask.add_argument("--only", nargs="+", default=[])
    ask.add_argument("--out", default="benchmarks/results/loader.json")
    for name in ("child", "tars", "work"):
        ask.add_argument(f"--{name}", default="", help=argparse.SUPPRESS)
    return ask.parse_args()


def main() -> None:
    args = asked()
    if args.child:
        child(args.child, Job(args.tars, args.work, tuple(args.crop), args.workers))
    torch.set_num_threads(1)
    samples = max(BATCH, args.samples // BATCH * BATCH)
    with tempfile.TemporaryDirectory() as folder:
        jobs = ways_of(args, Path(folder))
        ways = [Way(name, kind, job) for name, (kind, job) in jobs.items()]
        try:
            rates = measured(ways, args.rounds, samples)
        finally:
            for way in ways:
                way.close()
        some = next(iter(jobs.values()))[1]
        report = {
            "crop": list(args.crop),
            "side": args.side or None,
            "workers": args.workers,
            "samples_per_cpu_second": {name: spread(v) for name, v in rates.items()},
            "ours / it": {
                name: spread([a / b for a, b in zip(rates["ours"], v, strict=True)])
                for name, v in rates.items()
                if name != "ours" and "ours" in rates
            },
            "targets": TARGETS,
            "scaled: crops, mean and largest difference by denominator": levels(
                some, tuple(args.crop)
            ),
            "order us a sample": order_us(some.tars),
            "rounds": args.rounds,
            "samples": samples,
            "versions": versions(),
        }
    print(json.dumps(report, indent=1))
    Path(args.out).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
