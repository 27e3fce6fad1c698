"""Reading a checkpoint of any strategy and world into any other. Every byte is verified first."""

import hashlib
import json
import math
import os
import resource
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from vtx_scale.checkpoints.format import Damaged, folder_name, read_manifest, steps
from vtx_scale.checkpoints.tensor_file import TensorFile
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.distributed.sharding import Box, Slice

T = TypeVar("T")
# seconds between looks at a folder in which every checkpoint went away while it was read
PAUSES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.1, 0.2, 0.5, 1.0, 1.0, 2.0)


class Gone(Damaged):
    """A checkpoint that was removed while it was looked at."""


class Opened:
    """A checkpoint whose files were opened before any of them was read, and verified through these
    descriptors: what removes it meanwhile does not reach this reader.

    To be closed, or used as a context. Raises Gone, Damaged, or UserError for another format.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, TensorFile] = {}
        try:
            self.manifest = read_manifest(folder)
            self.open()
            for name, entry in self.manifest["files"].items():
                self.check(name, entry)
        except (Damaged, OSError) as e:
            self.close()
            if not folder.exists():
                raise Gone(f"{folder.name} was removed") from e
            raise e if isinstance(e, Damaged) else Damaged(unreadable(e)) from e
        except BaseException:
            self.close()
            raise

    def open(self) -> None:
        """Open all files; of very many, as many as half the descriptors of this process allow."""
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2
        for name in list(self.manifest["files"])[:most]:
            try:
                self.files[name] = TensorFile(self.folder / name)
            except OSError as e:
                raise Damaged(f"{name} cannot be read ({e.strerror})") from e

    def check(self, name: str, entry: dict[str, Any]) -> None:
        """Raises Damaged where a file's size or digest is not what the manifest says."""
        file = self.files.get(name) or TensorFile(self.folder / name)
        try:
            if file.size != entry["size"]:
                raise Damaged(f"{name} has {file.size} bytes instead of {entry['size']}")
            with os.fdopen(os.dup(file.fd), "rb") as f:
                f.seek(0)
                if hashlib.file_digest(f, "sha256").hexdigest() != entry["sha256"]:
                    raise Damaged(f"{name} does not match its digest")
        except OSError as e:
            raise Damaged(f"{name} cannot be read ({e.strerror})") from e
        finally:
            if name not in self.files:
                file.close()

    def tensors(self) -> "Tensors":
        """What is stored, read through the open files: to be used before this is closed."""
        return Tensors(self.folder, self.manifest, self.files)

    def close(self) -> None:
        """Let the files go."""
        while self.files:
            self.files.popitem()[1].close()

    def __enter__(self) -> "Opened":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def unreadable(e: OSError) -> str:
    """What the system said of a file."""
    return f"{Path(str(e.filename or '')).name or 'a file'} cannot be read ({e.strerror})"


def verify(folder: Path) -> dict[str, Any]:
    """Check every file against the manifest and return it.

    Raises Damaged, of which Gone is a kind.
    """
    with Opened(folder) as checkpoint:
        return checkpoint.manifest


def read_newest(
    folder: Path, use: Callable[[Opened], T], say: Callable[[str], None] = print
) -> T | None:
    """What `use` makes of a run's newest whole checkpoint; None where there is none.

    Damaged ones are passed over with a line each. One that retention removes meanwhile is none of
    them: the next newest is taken, and where all went away the folder is looked at again, so that a
    living run can always be read. `use` may be called again for another checkpoint.

    Raises UserError where a run removes its checkpoints faster than they can be opened.
    """
    said: set[str] = set()
    for pause in PAUSES:
        time.sleep(pause)
        listed, missing = steps(folder), False
        for step in reversed(listed):
            path = folder / folder_name(step)
            try:
                with Opened(path) as checkpoint:
                    return use(checkpoint)
            except Gone:
                missing = True
            except Damaged as e:
                missing = missing or not (path / "manifest.json").exists()
                if path.name not in said:
                    said.add(path.name)
                    say(f"checkpoint {path.name} is damaged ({e}): passed over")
            except OSError:
                if path.exists():
                    raise
                missing = True
        if not missing or (pause and steps(folder) == listed):
            return None
    raise UserError(
        f"{folder} loses its checkpoints faster than they can be read: "
        "set a higher checkpoint.keep, or a higher checkpoint.every."
    )


def newest(folder: Path, say: Callable[[str], None] = print) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint of a run that is whole, passing over damaged ones with a line each.

    Of a run that somebody trains use `read_newest`, which holds what it reads.
    """
    return read_newest(folder, lambda checkpoint: (checkpoint.folder, checkpoint.manifest), say)


def listing(folder: Path, deep: bool = False) -> list[dict[str, Any]]:
    """A row a checkpoint: step, bytes, valid, reason.

    `deep` verifies every byte, else the manifest alone. What retention removes meanwhile has none.
    """
    rows = []
    for step in steps(folder):
        path = folder / folder_name(step)
        manifest: dict[str, Any] = {}
        reason = ""
        try:
            size = sum(p.stat().st_size for p in path.iterdir())
            manifest = verify(path) if deep else read_manifest(path)
        except (Damaged, UserError, OSError) as e:
            if not path.exists():
                continue
            reason = str(e)
        rows.append(
            {
                "step": step,
                "bytes": size,
                "valid": not reason,
                "reason": reason,
                "strategy": manifest.get("strategy", ""),
                "world": manifest.get("world", 0),
            }
        )
    return rows


class Tensors:
    """The tensors of a verified checkpoint by canonical key, assembled box by box on demand.

    files: those that are open already, by name; the rest is opened when it is asked for.
    """

    def __init__(
        self, folder: Path, manifest: dict[str, Any], files: dict[str, TensorFile] | None = None
    ) -> None:
        self.folder = folder
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self._boxes: dict[str, list[tuple[Box, str, str]]] = {}
        self._files: dict[str, TensorFile] = {} if files is None else files
        for name in manifest["files"]:
            if not name.startswith("table-"):
                continue
            data = name.replace("table-", "data-").replace(".json", ".safetensors")
            table = self._file(name)
            for row in json.loads(table.read(0, table.size))["slices"]:
                key = row["key"]
                self.shapes[key] = tuple(row["shape"])
                self.dtypes[key] = getattr(torch, row["dtype"])
                box = tuple((a, b) for a, b in row["box"])
                self._boxes.setdefault(key, []).append((box, data, row["entry"]))

    def _file(self, name: str) -> TensorFile:
        if name not in self._files:
            self._files[name] = TensorFile(self.folder / name)
        return self._files[name]

    def keys(self) -> Iterable[str]:
        return self.shapes.keys()

    def fill(self, key: str, box: Box, out: Tensor) -> None:
        """Copy `box` of the tensor `key` into `out`.

        Raises Damaged where the parts do not cover it.
        """
        copied = 0
        for have, file, entry in self._boxes.get(key, ()):
            both = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(box, have, strict=True)]
            if any(a >= b for a, b in both):
                continue
            stored, dtype = self._file(file), self.dtypes[key]
            shape = tuple(b - a for a, b in have)
            view = out[tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(both, box, strict=True))]
            first, end = (both[0][0] - have[0][0], both[0][1] - have[0][0]) if both else (0, 1)
            plain = view.is_contiguous() and view.device.type == "cpu" and view.dtype == dtype
            if plain and both[1:] == list(have[1:]):  # straight to its place
                stored.rows(entry, shape, dtype, first, end, view)
            else:
                inner = zip(both[1:], have[1:], strict=True)
                rows = stored.rows(entry, shape, dtype, first, end)
                part = rows[(slice(None), *(slice(a - c, b - c) for (a, b), (c, _) in inner))]
                view.copy_(part.reshape(view.shape))
            copied += math.prod(b - a for a, b in both)
        if copied != out.numel():
            raise Damaged(f"{key}: {copied} of {out.numel()} values of {list(box)} are stored")

    def tensor(self, key: str) -> Tensor:
        """The tensor `key`, assembled."""
        shape = self.shapes[key]
        out = torch.empty(shape, dtype=self.dtypes[key])
        self.fill(key, tuple((0, n) for n in shape), out)
        return out

    def state(self, kind: str = "param") -> dict[str, Tensor]:
        """All tensors of one kind by their names: param, buffer, exp_avg, exp_avg_sq."""
        head = f"{kind}/"
        return {k.removeprefix(head): self.tensor(k) for k in self.keys() if k.startswith(head)}


@torch.no_grad()
def load(slices: Iterable[Slice], tensors: Tensors) -> None:
    """Write what is stored into the views of a strategy.

    Raises UserError where a name is missing or has another shape: the recipe is another then.
    """
    loaded = set()
    for s in slices:
        if s.key not in tensors.shapes:
            raise UserError(
                f"The checkpoint {tensors.folder.name} has no {s.key}: it is of another model."
            )
        if tensors.shapes[s.key] != s.shape:
            raise UserError(
                f"{s.key} is {tensors.shapes[s.key]} in the checkpoint and {s.shape} in the model."
            )
        if s.tensor.numel():
            tensors.fill(s.key, s.box, s.tensor)
        loaded.add(s.key)
    extra = sorted(set(tensors.keys()) - loaded)
    if extra:
        raise UserError(
            f"The checkpoint {tensors.folder.name} holds {extra[0]} and {len(extra) - 1} more "
            "that the model lacks: it is of another model."
        )
