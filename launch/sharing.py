"""What rank 0 was told of data sets in buckets, for ranks that no launcher of ours started."""

import os
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist

from vtx_scale.launch import opened
from vtx_scale.launch.datasets import coding, open_data
from vtx_scale.specs.run import Run


def share_opened(run: Run, device: torch.device) -> "tempfile.TemporaryDirectory[str] | None":
    """Called by every rank at the same time; a folder with what rank 0 has opened, to be kept until
    the run ends; None where a launcher has given one, or no data set lies in a bucket.
    """
    sources = [source.shards for source in run.data.sources]
    lists = (run.data.shards, run.data.val_shards, *sources)
    if opened.KEPT in os.environ or not any("s3://" in shards.lower() for shards in lists):
        return None
    folder = tempfile.TemporaryDirectory(prefix="vtx-opened-")
    at = Path(folder.name)
    if dist.get_rank() == 0:
        for train in (True, False):
            coding(run, open_data(run, train))
        opened.keep(at, run.data.hold_out)
    files = sorted(p for p in at.rglob("*") if p.is_file())
    table = [(str(p.relative_to(at)), p.stat().st_size) for p in files]
    listed = "\n".join(f"{size} {name}" for name, size in table).encode()
    body = b"".join([listed, b"\0", *(p.read_bytes() for p in files)])
    body = sent(body, device)
    if dist.get_rank():
        unpack(body, at)
    os.environ[opened.KEPT] = folder.name
    return folder


def sent(body: bytes, device: torch.device) -> bytes:
    """Rank 0's bytes, on every rank."""
    length = torch.tensor([len(body)], device=device)
    dist.broadcast(length, 0)
    size = int(length.item())
    content = torch.zeros(size, dtype=torch.uint8)
    if dist.get_rank() == 0:
        content = torch.frombuffer(bytearray(body), dtype=torch.uint8)
    content = content.to(device)
    dist.broadcast(content, 0)
    return content.cpu().numpy().tobytes()


def unpack(body: bytes, folder: Path) -> None:
    """Write the files: a line "SIZE NAME" each, a zero byte, then their contents."""
    head, _, rest = body.partition(b"\0")
    for line in head.decode().split("\n"):
        size, _, name = line.partition(" ")
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(rest[: int(size)])
        rest = rest[int(size) :]
