"""What a bucket costs through our client, beside bare boto3 on the same server in the same run.

    python benchmarks/s3.py [--mib 1024] [--rounds 3] [--out benchmarks/results/s3.json]

The server is SeaweedFS on this machine, begun for the run; it has room for 12 GiB, of which what is
removed is not given back before it ends. All kinds are measured in every round,
in another order each time, and each removes what it wrote:

    boto3       `upload_file` of boto3 as it comes: multipart, 8 MiB a part, ten at a time
    upload      our `put_file` of the same file: 8 MiB a part, eight at a time, each with its MD5
    save        our `Writer` until the manifest is committed: copy, digest, file, upload, manifest
    bare_reads  ranges of 8 MiB of one object, one after the other, by `get_object` of boto3
    reads       the same ranges by our `get_range`, of the object that is meant

Shown are the median and the fastest round, and the seconds of this process's CPUs. The ratios are
medians of those within a round.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for tests

from tests.s3 import Server, seaweed
from vtx_scale.checkpoints.write import Writer
from vtx_scale.data_pipeline.objects import ObjectPath, storage_of
from vtx_scale.distributed.sharding import Slice
from vtx_scale.launch.places import storage_at

RANGE = 8 << 20
BESIDE = {"upload": "boto3", "save": "boto3", "reads": "bare_reads"}


class Uploads:
    """The kinds, each a function that returns the seconds that count."""

    def __init__(self, server: Server, folder: Path, mib: int) -> None:
        self.folder, self.bytes = folder, mib << 20
        self.client, self.bucket = server.client(), server.bucket()
        self.root = storage_at(f"s3://{self.bucket}/bench")
        self.path = folder / "file"
        self.path.write_bytes(os.urandom(self.bytes))
        checkpoints = storage_of(ObjectPath(self.root, "run"), str(folder))
        self.writer = Writer(checkpoints, 0, 1, "bench", 1)
        self.slices = [
            Slice(f"param/{i}", (1 << 22,), ((0, 1 << 22),), torch.rand(1 << 22))
            for i in range(max(1, mib // 16))
        ]
        self.step = 0
        self.kinds: dict[str, Callable[[], float]] = {
            "boto3": self.boto3,
            "upload": self.upload,
            "save": self.save,
            "bare_reads": self.bare_reads,
            "reads": self.reads,
        }
        self.client.upload_file(str(self.path), self.bucket, "bench/read")

    def bare_reads(self) -> float:
        began = time.perf_counter()
        for at in range(0, self.bytes, RANGE):
            where = f"bytes={at}-{at + RANGE - 1}"
            answer = self.client.get_object(Bucket=self.bucket, Key="bench/read", Range=where)
            answer["Body"].read()
        return time.perf_counter() - began

    def reads(self) -> float:
        head = self.root.head("read")
        assert head is not None
        began = time.perf_counter()
        for at in range(0, self.bytes, RANGE):
            self.root.get_range("read", at, RANGE, head.tag)
        return time.perf_counter() - began

    def boto3(self) -> float:
        began = time.perf_counter()
        self.client.upload_file(str(self.path), self.bucket, "bench/theirs")
        return time.perf_counter() - began

    def upload(self) -> float:
        once = self.folder / "once"
        os.link(self.path, once)  # what is sent is gone then
        began = time.perf_counter()
        self.root.put_file("ours", once)
        return time.perf_counter() - began

    def save(self) -> float:
        self.step += 1
        began = time.perf_counter()
        self.writer.save(self.step, self.slices, {})
        self.writer.wait()
        assert self.writer.committed == self.step, self.writer.error
        return time.perf_counter() - began

    def clear(self) -> None:
        """Remove what was written, but for the newest checkpoint."""
        for name in ("theirs", "ours"):
            self.root.delete(name)


def main() -> None:
    ask = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ask.add_argument("--mib", type=int, default=1024)
    ask.add_argument("--rounds", type=int, default=3)
    ask.add_argument("--out", type=Path, default=None)
    args = ask.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory() as other:
        with seaweed(Path(name)) as server:
            os.environ.update(server.environment())
            uploads = Uploads(server, Path(other), args.mib)
            seconds: dict[str, list[float]] = {kind: [] for kind in uploads.kinds}
            cpu: dict[str, list[float]] = {kind: [] for kind in uploads.kinds}
            for k in range(args.rounds):
                order = list(uploads.kinds)
                for kind in order[k % len(order) :] + order[: k % len(order)]:
                    began = time.process_time()
                    seconds[kind].append(uploads.kinds[kind]())
                    cpu[kind].append(time.process_time() - began)
                    uploads.clear()
    rows = {
        kind: {
            "seconds": statistics.median(values),
            "fastest": min(values),
            "cpu_seconds": statistics.median(cpu[kind]),
            "mib_per_second": args.mib / statistics.median(values),
        }
        for kind, values in seconds.items()
    }
    ratios = {
        kind: statistics.median(b / a for b, a in zip(seconds[bare], seconds[kind], strict=True))
        for kind, bare in BESIDE.items()
    }
    for kind, row in rows.items():
        print(
            f"{kind:10} {row['seconds']:7.2f} s {row['mib_per_second']:6.0f} MiB/s  fastest "
            f"{row['fastest']:.2f} s  CPU {row['cpu_seconds']:.2f} s"
        )
    print(
        f"{args.mib} MiB; an upload has {ratios['upload']:.2f} of the throughput of boto3's, a "
        f"save {ratios['save']:.2f}; ranges are read at {ratios['reads']:.2f} of bare boto3's rate"
    )
    if args.out:
        body = {"mib": args.mib, "rounds": args.rounds, "rows": rows, "of_boto3": ratios}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(body | {"all": seconds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
