"""An object of a storage as a file that libraries read, and what is in a compressed one."""

import bz2
import gzip
import io
import lzma
from typing import Any, cast

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.storage import Object
from vtx_scale.data_pipeline.tar import COMPRESSED

BUFFER = 4 << 20  # bytes of one read


class Stream(io.RawIOBase):
    """Reads an object from its beginning on, or from wherever it is sought."""

    def __init__(self, source: Object) -> None:
        self.source, self.at = source, 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Bytes from the beginning."""
        return self.at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a byte; where it is."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.source.size}[whence]
        self.at = base + offset
        return self.at

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` as far as there are bytes. Raises OSError as `Object.read` does."""
        out = memoryview(buffer).cast("B")
        length = max(0, min(len(out), self.source.size - self.at))
        self.source.read_into(out[:length], self.at)
        self.at += length
        return length


def file_of(source: Object) -> io.BufferedReader:
    """An object as a buffered file; closing it leaves the object open."""
    return io.BufferedReader(Stream(source), BUFFER)


def unpacked(file: io.BufferedReader) -> io.BufferedIOBase:
    """What is in a file that gzip, bzip2, xz or zstd made, by its first bytes; else the file.

    Raises UserError for zstd without pyarrow.
    """
    head = file.peek(8)
    kind = next((name for magic, name in COMPRESSED.items() if head.startswith(magic)), "")
    if kind == "gzip":
        return gzip.open(file)
    if kind == "bzip2":
        return bz2.open(file)
    if kind == "xz":
        return lzma.open(file)
    if kind == "zstd":
        return cast(
            io.BufferedIOBase, arrow().CompressedInputStream(arrow().PythonFile(file), "zstd")
        )
    return file


def arrow() -> Any:
    """The package pyarrow. Raises UserError where it is missing."""
    try:
        import pyarrow
    except ImportError:
        raise UserError(
            "Parquet tables and zstd are read by pyarrow: pip install 'vtx-scale[parquet]'."
        ) from None
    return pyarrow
