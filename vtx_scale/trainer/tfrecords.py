"""TensorBoard's event files as they lie in a folder: names and records. Standard library alone."""

import secrets
import socket
import struct
import time
from collections.abc import Iterator

from vtx_scale.data_pipeline.objects import AnyPath

PREFIX = "events.out.tfevents."


def file_name() -> str:
    """Of a new file: TensorBoard reads in the order of names."""
    own = f"{time.time():.6f}.{socket.gethostname()}.{secrets.token_hex(4)}"
    return f"{PREFIX}{own}"


def event_files(folder: AnyPath) -> list[AnyPath]:
    """Those of a folder, in the order in which they were begun."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.name.startswith(PREFIX)]
    return sorted(found, key=lambda path: path.name)


def records(body: bytes) -> Iterator[tuple[int, bytes]]:
    """(where it ends, data) of each whole TFRecord."""
    at = 0
    while at + 12 <= len(body):
        (n,) = struct.unpack_from("<Q", body, at)
        end = at + 12 + n + 4
        if end > len(body):
            return
        yield end, body[at + 12 : at + 12 + n]
        at = end
