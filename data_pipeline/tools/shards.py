"""Writing tars: ordinary ustar shards, each whole or absent."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

from vtx_scale.data_pipeline.storage import whole

Sample = tuple[str, dict[str, bytes]]  # key, extension -> bytes


def write_shard(path: Path, samples: Iterable[Sample]) -> None:
    with whole(path) as part, tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, members in samples:
            for extension, body in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(body)
                tar.addfile(info, io.BytesIO(body))


def write_lines(path: Path, lines: Iterable[str]) -> None:
    with whole(path) as part:
        part.write_text("\n".join(lines) + "\n")
