"""Where a process has the bytes of a chunk: in its shard on this machine's disks, or in a copy that
was fetched whole.
"""

import zlib
from collections import OrderedDict
from typing import Protocol

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.index import Index
from vtx_scale.data_pipeline.storage import Changed, File, Folder, Storage

FILES_KEPT = 128
COPIES_KEPT = 256 << 20  # bytes
NAMES_ONLY = 1 << 20  # bytes that are read of a chunk whose one sample is known to be bad
FETCHES = 4  # of a chunk whose CRC differs, before its samples are masked
UNREACHED = 3  # chunks in a row that cannot be fetched end the run


class Ranges(Protocol):
    """What bytes are read of."""

    def read(self, offset: int, length: int) -> bytes:
        """Exactly these bytes. Raises OSError."""


class Source(Protocol):
    """The chunks of an index, for one process.

    by_sample: a sample is read at once, from its first member to its last.
    """

    by_sample: bool

    def at(self, k: int) -> tuple[Ranges, int]:
        """What chunk k is read of, and where in it the chunk begins.

        Raises UserError where its shard is gone or another, OSError where it cannot be read.
        """

    def forget(self, k: int) -> None:
        """Let the next read of a chunk come from where it lies, not from a copy."""

    def close(self) -> None:
        """Let descriptors and copies go."""


class ShardFiles:
    """The shards themselves, of a local folder: a descriptor each, the latest are kept open."""

    by_sample = False

    def __init__(self, index: Index, root: Folder) -> None:
        self.index, self.root = index, root
        self._files: OrderedDict[int, File] = OrderedDict()

    def at(self, k: int) -> tuple[File, int]:
        """The file of a chunk's shard, and the chunk's place; see `Source`."""
        shard, offset = self.index.extent(k)
        return self._file(shard), offset

    def forget(self, k: int) -> None:
        """Let the next read of a chunk come from the disk."""
        shard, offset = self.index.extent(k)
        self._file(shard).forget(offset, int(self.index.chunk_bytes[k]))

    def close(self) -> None:
        """Close the files."""
        while self._files:
            self._files.popitem()[1].close()

    def _file(self, shard: int) -> File:
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        size = int(self.index.shard_bytes[shard])
        try:
            file = File(self.root.root / self.index.names[shard])
        except FileNotFoundError:
            raise gone(self.index.url(shard)) from None
        if len(file) != size:
            file.close()
            raise UserError(
                f"{self.index.url(shard)} has {len(file)} bytes and had {size} when it was indexed "
                "(shard_changed), so that the order cannot be kept: put it back and run the "
                "same command again."
            )
        self._files[shard] = file
        if len(self._files) > FILES_KEPT:
            self._files.popitem(last=False)[1].close()
        return file


def gone(url: str) -> UserError:
    """What is said of a shard that is no more."""
    return UserError(
        f"{url} is gone (shard_changed), so that the order cannot be kept: "
        "put it back and run the same command again."
    )


class Copy:
    """The bytes of a chunk."""

    def __init__(self, body: bytes) -> None:
        self.body = body

    def read(self, offset: int, length: int) -> bytes:
        """Exactly these bytes. Raises OSError where the chunk ends before."""
        part = self.body[offset : offset + length]
        if len(part) != length:
            raise OSError(f"the chunk ends at byte {len(self.body)}")
        return part


class Torn(OSError):
    """A chunk that has another CRC-32 than the one that was indexed, each time it was fetched."""

    def __init__(self, url: str, body: bytes) -> None:
        super().__init__(f"{url}: a chunk has another CRC-32 than the one that was indexed")
        self.body = body


class Unfetched(OSError):
    """A chunk that the storage did not give, however often it was asked."""


class Copies:
    """Chunks of shards that lie elsewhere: each is fetched whole by one request, of the very object
    that was indexed, and kept in memory; the latest of at most `kept` bytes.

    What is kept was seen to have its CRC-32: nothing is read of a chunk that has another.
    """

    by_sample = False

    def __init__(self, index: Index, root: Storage, kept: int = COPIES_KEPT) -> None:
        self.index, self.root, self.kept = index, root, kept
        self._copies: OrderedDict[int, Copy] = OrderedDict()
        self._bytes = 0
        self._failed: set[int] = set()  # chunks, since one was fetched

    def at(self, k: int) -> tuple[Copy, int]:
        """The copy of a chunk; see `Source`. Raises `Torn` for one that is not what was indexed."""
        if k in self._copies:
            self._copies.move_to_end(k)
            return self._copies[k], 0
        copy = self._copies[k] = Copy(self.fetch(k))
        self._bytes += len(copy.body)
        while self._bytes > self.kept and len(self._copies) > 1:
            self._bytes -= len(self._copies.popitem(last=False)[1].body)
        return copy, 0

    def fetch(self, k: int) -> bytes:
        """A chunk whose CRC-32 is right, or what there is of one that holds no sound sample.

        Raises `Torn`, UserError where its shard is gone or another, or where chunk after chunk
        cannot be read, `Unfetched` where this one cannot.
        """
        for _ in range(FETCHES):
            try:
                body = fetched(self.index, self.root, k)
            except OSError as e:
                self._failed.add(k)
                if len(self._failed) >= UNREACHED:
                    raise UserError(
                        f"{UNREACHED} chunks in a row could not be fetched, the last of "
                        f"{self.index.url(self.index.extent(k)[0])} ({e.strerror or e}): look at "
                        "the server, then run the same command again."
                    ) from None
                raise Unfetched(e.errno, e.strerror or str(e), e.filename) from None
            self._failed.clear()
            if self.index.only_bad(k) or zlib.crc32(body) == int(self.index.chunk_crc[k]):
                return body
        raise Torn(self.index.url(self.index.extent(k)[0]), body)

    def forget(self, k: int) -> None:
        """Let the next read of a chunk fetch it again."""
        if k in self._copies:
            self._bytes -= len(self._copies.pop(k).body)

    def close(self) -> None:
        """Drop the copies."""
        self._copies.clear()
        self._bytes = 0


def fetched(index: Index, root: Storage, k: int) -> bytes:
    """Chunk k from its shard, by one request; its beginning alone where nothing but the name of its
    one sample is used. Raises as `fetched_range`.
    """
    length = int(index.chunk_bytes[k])
    length = min(length, NAMES_ONLY) if index.only_bad(k) else length
    return fetched_range(index, root, k, 0, length)


def fetched_range(index: Index, root: Storage, k: int, at: int, length: int) -> bytes:
    """`length` bytes of chunk k from its byte `at` on, by one request.

    Raises UserError where the shard is gone, was written anew or may not be read, OSError where it
    cannot be read.
    """
    shard, offset = index.extent(k)
    offset += at
    tag = index.shard_tag[shard].tobytes().rstrip(b"\0").decode()
    try:
        body = root.get_range(index.names[shard], int(offset), length, tag)
    except FileNotFoundError:
        raise gone(index.url(shard)) from None
    except Changed:
        raise UserError(
            f"{index.url(shard)} was written anew since it was indexed (shard_changed), so that "
            "the order cannot be kept: put it back and run the same command again."
        ) from None
    except PermissionError as e:
        raise UserError(
            f"{index.url(shard)} may not be read ({e.strerror}): give keys that may, then run the "
            "same command again."
        ) from None
    if len(body) != length:
        raise OSError(f"{index.url(shard)} ends at byte {offset + len(body)}")
    return body


def source_of(index: Index) -> Source:
    """Where this process has the chunks of an index."""
    root = index.root
    return ShardFiles(index, root) if isinstance(root, Folder) else Copies(index, root)
