"""What a job imports, as one zip: this package, as it is installed or checked out, and the files of
a stranger's recipe. Standard library alone.

The stranger's modules lie at the top, beside the package: whatever Ray starts has that on its path.
The same files give the same bytes.
"""

import hashlib
import io
import os
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from vtx_scale.data_pipeline.errors import UserError

PACKAGE = "vtx_scale"
ROOT = Path(os.path.abspath(__file__)).parent.parent  # as it is imported; links below it are read
MOST = 50 * 10**6  # bytes before they are packed
LEFT_OUT = ("__pycache__", "node_modules")
DATE = (1980, 1, 1, 0, 0, 0)


def pack(strangers: Iterable[str]) -> bytes:
    """The zip. strangers: folders of recipes that came from files.

    Raises UserError where it would be too large, naming the largest files, and where two folders
    have a module of one name.
    """
    files = {f"{PACKAGE}/{name}": path for name, path in below(ROOT)}
    for folder in strangers:
        for name, path in modules_in(Path(folder)):
            if files.setdefault(name, path) != path:
                raise UserError(
                    f"{path} and {files[name]} have one name: a job has both beside each other, "
                    "so rename one."
                )
    sizes = {name: path.stat().st_size for name, path in files.items()}
    if sum(sizes.values()) > MOST:
        largest = sorted(sizes, key=sizes.__getitem__, reverse=True)[:3]
        names = ", ".join(f"{files[n]} ({sizes[n] / 1e6:.1f} MB)" for n in largest)
        raise UserError(
            f"A job would carry {sum(sizes.values()) / 1e6:.0f} MB of code, more than "
            f"{MOST / 1e6:.0f}: move what is no code out of the recipe's folder, first of all "
            f"{names}."
        )
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w", zipfile.ZIP_DEFLATED) as out:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, DATE)
            entry.external_attr = 0o644 << 16
            out.writestr(entry, files[name].read_bytes(), zipfile.ZIP_DEFLATED)
    return body.getvalue()


def name_of(body: bytes) -> str:
    """Of a package, by its content."""
    return f"code-{hashlib.sha256(body).hexdigest()[:12]}.zip"


def below(folder: Path) -> Iterator[tuple[str, Path]]:
    """(name below it, path) of every file of a package but hidden and compiled ones."""
    for at, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(f for f in folders if f[0] != "." and f not in LEFT_OUT)
        for file in sorted(files):
            path = Path(at) / file
            if file[0] != "." and path.suffix not in (".pyc", ".so") and path.is_file():
                yield path.relative_to(folder).as_posix(), path


def modules_in(folder: Path) -> Iterator[tuple[str, Path]]:
    """The same of a recipe's folder: its modules, and its packages with all that lies in them."""
    for path in sorted(folder.iterdir()):
        if path.suffix == ".py" and path.is_file():
            yield path.name, path
        elif path.is_dir() and (path / "__init__.py").is_file() and path.name != PACKAGE:
            for name, file in below(path):
                yield f"{path.name}/{name}", file
