"""Writing tars: ordinary shards, each whole or absent, the same bytes for the same samples."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from vtx_scale.data_pipeline.storage import whole

Sample = tuple[str, dict[str, bytes]]  # key, extension -> bytes


def write_tar(path: Path, samples: Iterable[Sample]) -> int:
    """Write a tar; how many samples it holds.

    The same bytes for the same samples: no time, owner or mode of a file is in it. Names that ustar
    has no room for are GNU's long ones.
    """
    count = 0
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, members in samples:
            count += 1
            for extension, body in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(body)
                tar.format = format_of(info)
                tar.addfile(info, io.BytesIO(body))
    return count


def write_shard(path: Path, samples: Iterable[Sample]) -> None:
    with whole(path) as part:
        write_tar(part, samples)


def format_of(info: tarfile.TarInfo) -> Literal[0, 1]:
    """Of the header of a member: ustar where its name fits."""
    ustar: Literal[0] = 0
    gnu: Literal[1] = 1
    try:
        info.tobuf(ustar, tarfile.ENCODING, "surrogateescape")
    except ValueError:
        return gnu
    return ustar


def write_lines(path: Path, lines: Iterable[str]) -> None:
    with whole(path) as part:
        part.write_text("\n".join(lines) + "\n")
