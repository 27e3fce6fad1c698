"""What rank 0 was told of data sets in buckets, for ranks that no launcher of ours started."""

import os
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.distributed.phases import PHASES
from vtx_scale.launch import opened
from vtx_scale.launch.datasets import coding, open_data
from vtx_scale.specs.run import Run
from vtx_scale.trainer.control import Elsewhere


def share_opened(run: Run, device: torch.device) -> "tempfile.TemporaryDirectory[str] | None":
    """Called by every rank at the same time; a folder with what rank 0 has opened, to be kept until
    the run ends; None where a launcher has given one, or no data set lies in a bucket.

    Raises on rank 0 what opening them raises, Elsewhere on the others then.
    """
    sources = [source.shards for source in run.data.sources]
    lists = (run.data.shards, run.data.val_shards, *sources)
    if opened.KEPT in os.environ or not any("s3://" in shards.lower() for shards in lists):
        return None
    folder = tempfile.TemporaryDirectory(prefix="vtx-opened-")
    at, body, fault = Path(folder.name), b"", None
    if dist.get_rank() == 0:
        try:
            for train in (True, False) if run.evaluate else (True,):
                coding(run, open_data(run, train))
            opened.keep(at, run.data.hold_out)
            body = packed(at)
        except (UserError, OSError) as e:
            fault = e
    body = sent(body, device)
    if fault is not None:
        raise fault
    if not body:
        raise Elsewhere(2)
    if dist.get_rank():
        unpack(body, at)
    os.environ[opened.KEPT] = folder.name
    return folder


def let_go(folder: "tempfile.TemporaryDirectory[str]") -> None:
    """The run is at its end: the next one in this process opens its data sets anew."""
    os.environ.pop(opened.KEPT, None)
    opened.forget()
    folder.cleanup()


def sent(body: bytes, device: torch.device) -> bytes:
    """Rank 0's bytes, on every rank."""
    length = torch.tensor([len(body)], device=device)
    with PHASES.collective():
        dist.broadcast(length, 0)
    size = int(length.item())
    content = torch.zeros(size, dtype=torch.uint8)
    if size and dist.get_rank() == 0:
        content = torch.frombuffer(bytearray(body), dtype=torch.uint8)
    content = content.to(device)
    with PHASES.collective():
        dist.broadcast(content, 0)
    return content.cpu().numpy().tobytes()


def packed(folder: Path) -> bytes:
    """The files in a folder; see `unpack`."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    lines = [f"{p.stat().st_size} {p.relative_to(folder)}" for p in files]
    return b"".join(["\n".join(lines).encode(), b"\0", *(p.read_bytes() for p in files)])


def unpack(body: bytes, folder: Path) -> None:
    """Write the files: a line "SIZE NAME" each, a zero byte, then their contents."""
    head, _, rest = body.partition(b"\0")
    for line in head.decode().split("\n"):
        size, _, name = line.partition(" ")
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(rest[: int(size)])
        rest = rest[int(size) :]
