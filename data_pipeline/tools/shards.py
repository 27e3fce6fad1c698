"""Writing tars: ordinary ustar shards, each whole or absent."""

import io
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path

Sample = tuple[str, dict[str, bytes]]  # key, extension -> bytes


def write_shard(path: Path, samples: Iterable[Sample]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, members in samples:
            for extension, body in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(body)
                tar.addfile(info, io.BytesIO(body))
    os.replace(part, path)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text("\n".join(lines) + "\n")
    os.replace(part, path)
