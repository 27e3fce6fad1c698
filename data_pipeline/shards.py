"""Shards of a list, wherever they lie: names below one place, in their order."""

import os
import re
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.foreign import PICTURES, TABLES, buildable
from vtx_scale.data_pipeline.lists import braces, expand, separators
from vtx_scale.data_pipeline.storage import Changed, Folder, Head, NoBucket, Storage

PART = 8 << 20  # bytes that are fetched at a time
AHEAD = 3  # shards that are fetched before they are read
AT_BUCKET = re.compile(r"s3://", re.IGNORECASE).match
# an address without a user or a query: keys may stand there
ADDRESS = re.compile(r"s3://[a-z0-9._-]{3,255}(/[^?#\s]*)?", re.IGNORECASE).fullmatch
ODD = re.compile(r"(?<!:)//|/\.{1,2}(/|$)").search
MAGIC = re.compile(r"[*?[]").search


@dataclass(frozen=True)
class Shards:
    """Shards below `root`, by the bytes of their names.

    title: as the user wrote them. folder: the one that was named, relative to the root, where it
    was a folder of a bucket: `names` are empty until its list is known.
    """

    root: Storage
    names: list[str]
    title: str
    folder: str | None = None

    @property
    def remote(self) -> bool:
        """Whether they lie elsewhere than on this machine's disks."""
        return not isinstance(self.root, Folder)

    def url(self, name: str) -> str:
        """The name of a shard for people."""
        return f"{self.root}/{name}"

    def local(self, name: str) -> Path:
        """The file of a shard on this machine's disks."""
        assert isinstance(self.root, Folder)
        return self.root.root / name

    def files(self) -> Iterator[tuple[str, Path, Head | None]]:
        """(name, file, size and tag) of each shard in order, to be read from its beginning to its
        end before the next is asked for: one that lies elsewhere is fetched to a temporary folder,
        some ahead; a local one has no tag.

        Raises UserError where one is gone, OSError where it cannot be fetched.
        """
        if not self.remote:
            yield from ((name, self.local(name), None) for name in self.names)
            return
        with tempfile.TemporaryDirectory(prefix="vtx-shards-") as folder:
            pool = ThreadPoolExecutor(AHEAD, "vtx-fetch")
            arriving: deque[tuple[str, Path, Future[Head]]] = deque()
            try:
                for i, name in enumerate(self.names):
                    path = Path(folder) / str(i) / name.rpartition("/")[2]
                    path.parent.mkdir()
                    arriving.append((name, path, pool.submit(fetch, self.root, name, path)))
                    if len(arriving) > AHEAD:
                        yield from arrived(arriving)
                while arriving:
                    yield from arrived(arriving)
            finally:
                pool.shutdown(cancel_futures=True)


def arrived(arriving: "deque[tuple[str, Path, Future[Head]]]") -> Iterator[tuple[str, Path, Head]]:
    """The first of the shards that are fetched, whose file is gone afterwards."""
    name, path, head = arriving.popleft()
    yield name, path, head.result()
    path.unlink()


def fetch(root: Storage, name: str, path: Path) -> Head:
    """Copy an object to a file, in parts; its size and tag.

    Raises UserError where it is gone or changes on the way, OSError where it cannot be read.
    """
    head = root.head(name)
    if head is None:
        raise UserError(f"{root}/{name} does not exist: look at the names, or copy it there.")
    try:
        with path.open("wb") as out:
            for at in range(0, head.size, PART):
                out.write(root.get_range(name, at, min(PART, head.size - at), head.tag))
    except (Changed, FileNotFoundError):
        raise UserError(
            f"{root}/{name} was written anew while it was read: wait until it is complete, then "
            "run the same command again."
        ) from None
    return head


def local_shards(shards: str, say: Callable[[str], None] = lambda line: None) -> Shards:
    """The shards on this machine's disks that a list means; see `lists.expand`.

    Raises UserError where nothing or not everything is there.
    """
    root, paths = in_order(expand(shards, say))
    return Shards(Folder(root), [p.relative_to(root).as_posix() for p in paths], shards)


def in_order(paths: list[Path]) -> tuple[Path, list[Path]]:
    """(the folder that shards have in common, the shards by the bytes of their names below it)."""
    root = Path(os.path.commonpath([p.parent for p in paths]))
    return root, sorted(paths, key=lambda p: encoded(p.relative_to(root).as_posix()))


def encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def entries(shards: str) -> list[str]:
    """The entries of a list of which one lies in a bucket, without blanks around them."""
    cuts = separators(shards)
    starts, ends = [0, *(e for _, e in cuts)], [*(b for b, _ in cuts), len(shards)]
    return [shards[a:b].strip() for a, b in zip(starts, ends, strict=True)]


def in_bucket(shards: str) -> bool:
    """Whether an entry of a list lies in a bucket."""
    return any(AT_BUCKET(entry) for entry in entries(shards))


def bucket_shards(shards: str, storage_at: Callable[[str], Storage]) -> Shards:
    """The shards in a bucket that a list means: brace patterns, names, or one folder. Nothing is
    asked of the server.

    Raises UserError where entries lie in more than one bucket, or are written as nothing in a
    bucket can be.
    """
    urls: list[str] = []
    for entry in entries(shards):
        if "://" in entry and MAGIC(entry) and "?" not in entry and "@" not in entry:
            raise UserError(
                f"{entry}: names in a bucket are not matched: give its folder, or a range as in "
                "{000..099}."
            )
        if AT_BUCKET(entry) and not all(map(ADDRESS, braces(entry))):
            raise UserError(
                "Shards in a bucket are named s3://bucket/folder/part.tar: no key, query or "
                "fragment stands in it, the keys are set in the environment."
            )
    for entry in entries(shards):
        if not AT_BUCKET(entry):
            raise UserError(
                f"{shards}: some of these shards are local and some in a bucket: give one place."
            )
        urls += [f"s3:{url[3:]}" for url in braces(entry)]
    if odd := next(filter(ODD, urls), None):
        raise UserError(f"{odd}: write it without //, . and .. between the folders.")
    buckets = {url.split("/")[2] for url in urls}
    if len(buckets) > 1:
        raise UserError(f"{shards}: these shards lie in {len(buckets)} buckets: give one of them.")
    if len(urls) == 1 and urls[0].lower().endswith(TABLES):
        raise buildable(f"{urls[0]} is a table and no tar", urls[0])
    if len(urls) == 1 and not urls[0].endswith(".tar"):
        return Shards(storage_at(urls[0]), [], shards, "")
    if folders := [url for url in urls if url.endswith("/") or url.count("/") < 3]:
        raise UserError(f"{folders[0]}: give one folder of a bucket alone, or shards by name.")
    base = f"s3://{buckets.pop()}"
    keys = sorted((url[len(base) + 1 :] for url in urls), key=encoded)
    doubled = next((a for a, b in zip(keys, keys[1:], strict=False) if a == b), None)
    if doubled is not None:
        raise UserError(f"{base}/{doubled} is named twice: give each shard once.")
    common = os.path.commonpath([key.rpartition("/")[0] for key in keys])
    cut = len(common) + 1 if common else 0
    return Shards(storage_at(f"{base}/{common}"), [key[cut:] for key in keys], shards)


def listed(shards: Shards) -> Shards:
    """With the names of the tars directly inside of a bucket's folder, by one look at it.

    Raises UserError where there are none.
    """
    found, other = [], ""
    for name in shards.root.list(""):
        if name.endswith(".tar") and "/" not in name and not name.startswith("."):
            found.append(name)
        elif not other and name.lower().endswith((*PICTURES, *TABLES)):
            other = name
    if not found and other:
        raise buildable(f"{shards.title} holds no *.tar but {other}", shards.title)
    if not found:
        raise UserError(f"{shards.title} holds no *.tar: look at the bucket and the folder.")
    return Shards(shards.root, sorted(found, key=encoded), shards.title, shards.folder)


def read_whole(root: Storage, name: str, limit: int = 1 << 40) -> bytes | None:
    """An object whole, by one request; None where there is none.

    Raises UserError where there is no such bucket, OSError as the storage.
    """
    try:
        return root.get_range(name, 0, limit)
    except NoBucket as e:
        raise UserError(f"{e.filename}: there is no such bucket: look at its name.") from None
    except FileNotFoundError:
        return None
