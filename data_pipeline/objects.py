"""Names in a storage that is no folder of this machine, used as paths are. Standard library alone.

`AnyPath` is what is asked of either: a run's folder is one.
"""

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Protocol, Self

from vtx_scale.data_pipeline.publish import part_of
from vtx_scale.data_pipeline.storage import Folder, Head, Object, Storage


class AnyPath(Protocol):
    """What `pathlib.Path` and `ObjectPath` have in common, each as `pathlib` has it."""

    @property
    def name(self) -> str: ...

    @property
    def stem(self) -> str: ...

    @property
    def parent(self) -> Self: ...

    def __truediv__(self, key: str) -> Self: ...

    def absolute(self) -> Self: ...

    def resolve(self) -> Self: ...

    def exists(self) -> bool: ...

    def is_file(self) -> bool: ...

    def is_dir(self) -> bool: ...

    def iterdir(self) -> Iterator[Self]: ...

    def read_bytes(self) -> bytes: ...

    def read_text(self) -> str: ...

    def unlink(self, missing_ok: bool = False) -> None: ...


class ObjectPath:
    """An object by its name in a storage, or what looks like a folder of some; each look is a
    request, and what a request raises is an OSError.
    """

    def __init__(self, root: Storage, key: str = "") -> None:
        """key: below the root, the root itself where it is empty."""
        self.root, self.key = root, key.strip("/")

    def __str__(self) -> str:
        return f"{self.root}/{self.key}" if self.key else str(self.root)

    def __repr__(self) -> str:
        return f"ObjectPath({str(self)!r})"

    @property
    def name(self) -> str:
        """The last part; of the root itself it is empty."""
        return PurePosixPath(self.key).name

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return PurePosixPath(self.key).stem

    @property
    def parent(self) -> Self:
        """The folder that it lies in; the root's is the root."""
        return type(self)(self.root, self.key.rpartition("/")[0])

    def __truediv__(self, key: str) -> Self:
        return type(self)(self.root, f"{self.key}/{key}")

    def absolute(self) -> Self:
        """Itself."""
        return self

    def resolve(self) -> Self:
        """Itself."""
        return self

    def exists(self) -> bool:
        """Whether there is an object of that name, or one below it."""
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        """Whether there is an object of that name."""
        return bool(self.key) and self.root.head(self.key) is not None

    def is_dir(self) -> bool:
        """Whether there is an object below it."""
        return any(True for _ in self.root.list(self._below()))

    def iterdir(self) -> Iterator[Self]:
        """What lies directly below it, in order."""
        start = len(self._below())
        for name in sorted({n[start:].partition("/")[0] for n in self.root.list(self._below())}):
            yield self / name

    def read_bytes(self) -> bytes:
        """All of an object. Raises FileNotFoundError where there is none."""
        with self.root.open(self.key) as file:
            return file.read(0, file.size)

    def read_text(self) -> str:
        """The same as text. Raises ValueError where it is none."""
        return self.read_bytes().decode()

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove an object. Raises FileNotFoundError where there is none, unless that may be."""
        if not missing_ok and not self.is_file():
            raise FileNotFoundError(errno.ENOENT, "no such object", str(self))
        self.root.delete(self.key)

    def _below(self) -> str:
        return f"{self.key}/" if self.key else ""


class Below:
    """What lies below a prefix of another storage, as a `Storage`; it can be pickled where that
    can.
    """

    def __init__(self, root: Storage, prefix: str, scratch: Path | None = None) -> None:
        """prefix: a folder's name. scratch: where files wait until they are sent; the temporary
        folder if None.
        """
        self.root, self.prefix = root, f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._scratch = scratch

    def __str__(self) -> str:
        return f"{self.root}/{self.prefix}".rstrip("/")

    def get_range(self, name: str, offset: int, length: int, tag: str | None = None) -> bytes:
        """As the storage has it."""
        return self.root.get_range(self.prefix + name, offset, length, tag)

    def open(self, name: str) -> Object:
        """As the storage has it."""
        return self.root.open(self.prefix + name)

    def put(self, name: str, body: bytes) -> None:
        """As the storage has it."""
        self.root.put(self.prefix + name, body)

    def put_file(self, name: str, path: Path) -> None:
        """As the storage has it."""
        self.root.put_file(self.prefix + name, path)

    @contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """A path in a folder of its own in the one for files that wait, which removes what dead
        processes have left there. Raises OSError where nothing can be written there.
        """
        at = self._scratch or Path(tempfile.gettempdir())
        with part_of(at / f"vtx-{PurePosixPath(name).name}") as (folder, _):
            yield folder / "file"

    def put_if_absent(self, name: str, body: bytes) -> bool:
        """As the storage has it."""
        return self.root.put_if_absent(self.prefix + name, body)

    def replace_if(self, name: str, body: bytes, tag: str) -> str | None:
        """As the storage has it."""
        return self.root.replace_if(self.prefix + name, body, tag)

    def list(self, prefix: str) -> Iterator[str]:
        """As the storage has it."""
        for name in self.root.list(self.prefix + prefix):
            yield name[len(self.prefix) :]

    def head(self, name: str) -> Head | None:
        """As the storage has it."""
        return self.root.head(self.prefix + name)

    def delete(self, name: str) -> None:
        """As the storage has it."""
        self.root.delete(self.prefix + name)


def storage_of(path: AnyPath, scratch: str = "") -> Storage:
    """What lies in a folder, as a storage. scratch: where files wait that are on their way to
    another machine; the temporary folder if empty.
    """
    if isinstance(path, ObjectPath):
        return Below(path.root, path.key, Path(scratch) if scratch else None)
    return Folder(Path(str(path)))
