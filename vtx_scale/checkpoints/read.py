"""Reading a checkpoint of any strategy and world into any other. Every byte is verified first."""

import contextlib
import hashlib
import json
import math
import resource
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from vtx_scale.checkpoints.format import (
    MALFORMED,
    Damaged,
    data_of,
    folder_name,
    manifest_and_tag,
    manifest_name,
    read_manifest,
    steps,
)
from vtx_scale.checkpoints.tensor_file import CHUNK, TensorFile, dtype_of
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.storage import Object, Storage
from vtx_scale.distributed.phases import PHASES
from vtx_scale.distributed.sharding import Box, Slice

T = TypeVar("T")
# seconds between looks at a run whose checkpoints all went away while they were read
PAUSES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.1, 0.2, 0.5, 1.0, 1.0, 2.0)


class Gone(Damaged):
    """A checkpoint that was removed, or saved anew, while it was looked at."""


class Opened:
    """A checkpoint whose files were opened before any of them was read, and verified as they are
    then: what removes it meanwhile does not reach this reader.

    share: (rank, ranks), which of so many equal shares of the files is looked at. To be closed, or
    used as a context. Raises Gone, Damaged, or UserError for another format.
    """

    def __init__(self, storage: Storage, step: int, share: tuple[int, int] = (0, 1)) -> None:
        self.storage, self.step = storage, step
        self.files: dict[str, TensorFile] = {}
        self.tag = ""
        try:
            self.manifest, self.tag = manifest_and_tag(storage, step)
            names = sorted(self.manifest["files"])[share[0] :: share[1]]
            self.open(names)
            for name in names:
                self.check(name, self.manifest["files"][name])
        except Damaged as e:
            self.close()
            if self.gone():
                raise Gone(f"{folder_name(step)} was removed") from e
            raise
        except BaseException:
            self.close()
            raise

    def open(self, names: list[str]) -> None:
        """Open these files; of very many, as many as `most_files` says."""
        for name in names[: most_files()]:
            self.files[name] = opened(self.storage, self.step, name)

    def check(self, name: str, entry: dict[str, Any]) -> None:
        """Raises Damaged where a file's size or digest is not what the manifest says."""
        file = self.files.get(name) or opened(self.storage, self.step, name)
        try:
            if file.file.size != entry["size"]:
                raise Damaged(f"{name} has {file.file.size} bytes instead of {entry['size']}")
            if digest_of(file.file) != entry["sha256"]:
                raise Damaged(f"{name} does not match its digest")
        except OSError as e:
            raise Damaged(unreadable(name, e)) from e
        finally:
            if name not in self.files:
                file.close()

    def gone(self) -> bool:
        """Whether it was removed, or another save took its place, since it was opened."""
        head = self.storage.head(manifest_name(self.step))
        return head is None or bool(self.tag and self.tag != head.tag)

    def tensors(self) -> "Tensors":
        """What is stored, read through the open files: to be used before this is closed."""
        return Tensors(self.storage, self.manifest, self.files)

    def close(self) -> None:
        """Let the files go."""
        while self.files:
            self.files.popitem()[1].close()

    def __enter__(self) -> "Opened":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def most_files() -> int:
    """Half the descriptors that this process may have, as many as the system lets it ask for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return soft // 2 if soft > 0 else 1 << 20  # negative: no limit


def opened(storage: Storage, step: int, name: str) -> TensorFile:
    """A file of a checkpoint. Raises Damaged where it cannot be opened."""
    try:
        return TensorFile(name, storage.open(f"{folder_name(step)}/{name}"))
    except OSError as e:
        raise Damaged(unreadable(name, e)) from e


def unreadable(name: str, e: OSError) -> str:
    """What the system said of a file."""
    return f"{name} cannot be read ({e.strerror or e})"


def digest_of(file: Object) -> str:
    """SHA-256 of an object. Raises OSError where it cannot be read."""
    digest = hashlib.sha256()
    for start in range(0, file.size, CHUNK):
        digest.update(file.read(start, min(CHUNK, file.size - start)))
        PHASES.mark()  # a large file on a slow disk is no hang
    return digest.hexdigest()


def verify(storage: Storage, step: int) -> dict[str, Any]:
    """Check every file against the manifest, which is returned, and that no part is missing.

    Raises Damaged, of which Gone is a kind.
    """
    with Opened(storage, step) as checkpoint:
        return complete(checkpoint)


def read_newest(
    storage: Storage, use: Callable[[Opened], T], say: Callable[[str], None] = print
) -> T | None:
    """What `use` makes of a run's newest whole checkpoint; None where there is none.

    Damaged ones are passed over with a line each. One that retention removes meanwhile is none of
    them: the next newest is taken, and where all went away the run is looked at again, so that a
    living run can always be read. `use` may be called again for another checkpoint.

    Raises UserError where a run removes its checkpoints faster than they can be opened.
    """
    said: set[int] = set()
    for pause in PAUSES:
        time.sleep(pause)
        listed, missing = steps(storage), False
        for step in reversed(listed):
            checkpoint = None
            try:
                with Opened(storage, step) as checkpoint:
                    return use(checkpoint)
            except Gone:
                missing = True
            except Damaged as e:
                if step not in said:
                    said.add(step)
                    say(f"checkpoint {folder_name(step)} is damaged ({e}): passed over")
            except OSError:
                if checkpoint is None or not checkpoint.gone():
                    raise
                missing = True
        # a listing takes its time: while it does, one may go before it is seen and the next come
        # behind, so that of none there is a second look
        if (listed and not missing) or (pause and steps(storage) == listed):
            return None
    raise UserError(
        "The run loses its checkpoints faster than they can be read: "
        "set a higher checkpoint.keep, or a higher checkpoint.every."
    )


def newest(storage: Storage, say: Callable[[str], None] = print) -> dict[str, Any] | None:
    """The manifest of a run's newest checkpoint that is whole, passing over damaged ones with a
    line each.

    Of a run that somebody trains use `read_newest`, which holds what it reads.
    """
    return read_newest(storage, complete, say)


def complete(checkpoint: Opened) -> dict[str, Any]:
    """The manifest of a checkpoint. Raises Damaged where a tensor is not all there."""
    checkpoint.tensors().check()
    return checkpoint.manifest


def listing(storage: Storage, deep: bool = False) -> list[dict[str, Any]]:
    """A row a checkpoint: step, bytes, valid, reason.

    `deep` verifies every byte, else the manifest alone. What retention removes meanwhile has none.
    """
    rows = []
    for step in steps(storage):
        manifest: dict[str, Any] = {}
        reason = ""
        try:
            manifest = verify(storage, step) if deep else read_manifest(storage, step)
        except (Damaged, UserError, OSError) as e:
            if storage.head(manifest_name(step)) is None:
                continue
            reason = str(e)
        heads = [storage.head(name) for name in storage.list(f"{folder_name(step)}/")]
        rows.append(
            {
                "step": step,
                "bytes": sum(head.size for head in heads if head is not None),
                "valid": not reason,
                "reason": reason,
                "strategy": manifest.get("strategy", ""),
                "world": manifest.get("world", 0),
                "epoch": manifest.get("epoch", 0),
            }
        )
    return rows


@dataclass(frozen=True)
class Part:
    """A box of a tensor, and where it is stored."""

    box: Box
    file: str
    entry: str


class Tensors:
    """The tensors of a verified checkpoint by canonical key, assembled box by box on demand.

    files: those that are open already, by name; the rest is opened when it is asked for. Raises
    Damaged where a table is none.
    """

    def __init__(
        self,
        storage: Storage,
        manifest: dict[str, Any],
        files: dict[str, TensorFile] | None = None,
    ) -> None:
        self.storage, self.step = storage, int(manifest["step"])
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self._parts: dict[str, list[Part]] = {}
        self._sound: set[str] = set()  # keys whose parts were looked at
        self._files: dict[str, TensorFile] = {} if files is None else files
        self._most = most_files()
        for name in manifest["files"]:
            if not name.startswith("table-"):
                continue
            if data_of(name) not in manifest["files"]:
                raise Damaged(f"manifest.json does not know {data_of(name)}")
            try:
                self._read_table(name)
            except MALFORMED as e:
                raise Damaged(f"{name} is no table ({type(e).__name__})") from e

    def _read_table(self, name: str) -> None:
        table = self._file(name).file
        for row in json.loads(table.read(0, table.size))["slices"]:
            key, shape = str(row["key"]), tuple(row["shape"])
            box = tuple((a, b) for a, b in row["box"])
            dtype = dtype_of(row["dtype"])
            if (self.shapes.setdefault(key, shape), self.dtypes.setdefault(key, dtype)) != (
                shape,
                dtype,
            ):
                raise Damaged(f"{name} has another {key} than the tables before it")
            inside = (
                all(isinstance(x, int) for x in (a, b, n)) and 0 <= a < b <= n
                for (a, b), n in zip(box, shape, strict=True)
            )
            if not all(inside):
                raise Damaged(f"{name} has a part of {key} that lies outside of it")
            part = Part(box, data_of(name), str(row["entry"]))
            self._parts.setdefault(key, []).append(part)

    def _file(self, name: str) -> TensorFile:
        if name not in self._files:
            while len(self._files) >= self._most:
                self._files.pop(next(iter(self._files))).close()
            self._files[name] = opened(self.storage, self.step, name)
        return self._files[name]

    def _check(self, key: str) -> None:
        """Raises Damaged where the parts of a tensor are not all of it, each value once."""
        if key in self._sound:
            return
        boxes = [part.box for part in self._parts.get(key, ())]
        stored = sum(math.prod(b - a for a, b in box) for box in boxes)
        values = math.prod(self.shapes[key])
        if stored != values:
            raise Damaged(f"{key}: {stored} of {values} values are stored")
        if not apart(boxes):
            raise Damaged(f"{key}: some of its values are stored twice")
        self._sound.add(key)

    def keys(self) -> Iterable[str]:
        return self.shapes.keys()

    def check(self) -> None:
        """Raises Damaged where a tensor is not all there, as far as sizes tell."""
        for key in self.keys():
            self._check(key)
            for part in self._parts[key]:
                shape = tuple(b - a for a, b in part.box)
                self._file(part.file).place(part.entry, shape, self.dtypes[key])

    def fill(self, key: str, box: Box, out: Tensor) -> None:
        """Copy `box` of the tensor `key` into `out`.

        Raises Damaged where the parts do not cover it.
        """
        PHASES.mark()
        self._check(key)
        copied = 0
        for part in self._parts.get(key, ()):
            have, entry = part.box, part.entry
            both = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(box, have, strict=True)]
            if any(a >= b for a, b in both):
                continue
            stored, dtype = self._file(part.file), self.dtypes[key]
            shape = tuple(b - a for a, b in have)
            view = out[tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(both, box, strict=True))]
            first, end = (both[0][0] - have[0][0], both[0][1] - have[0][0]) if both else (0, 1)
            plain = view.is_contiguous() and view.device.type == "cpu" and view.dtype == dtype
            if plain and both[1:] == list(have[1:]):  # straight to its place
                stored.rows(entry, shape, dtype, first, end, view)
            else:
                inner = zip(both[1:], have[1:], strict=True)
                rows = stored.rows(entry, shape, dtype, first, end)
                cut = rows[(slice(None), *(slice(a - c, b - c) for (a, b), (c, _) in inner))]
                view.copy_(cut.reshape(view.shape))
            copied += math.prod(b - a for a, b in both)
        if copied != out.numel():
            raise Damaged(f"{key}: {copied} of {out.numel()} values of {list(box)} are stored")

    def files_of(self, slices: Iterable[Slice]) -> set[str]:
        """The names of the files that hold some of these slices."""
        found = set()
        for s in slices:
            for part in self._parts.get(s.key, ()):
                boxes = zip(s.box, part.box, strict=True)
                if s.tensor.numel() and all(max(a, c) < min(b, d) for (a, b), (c, d) in boxes):
                    found.add(part.file)
        return found

    def tensor(self, key: str) -> Tensor:
        """The tensor `key`, assembled."""
        self._check(key)
        shape = self.shapes[key]
        out = torch.empty(shape, dtype=self.dtypes[key])
        self.fill(key, tuple((0, n) for n in shape), out)
        return out

    def weight(self, name: str) -> str:
        """The key under which a parameter is used: of its average, where the run keeps one."""
        average = f"average/{name}"
        return average if average in self.shapes else f"param/{name}"

    def state(self, kind: str = "param") -> dict[str, Tensor]:
        """All tensors of one kind by their names: param, buffer, exp_avg, exp_avg_sq."""
        head = f"{kind}/"
        return {k.removeprefix(head): self.tensor(k) for k in self.keys() if k.startswith(head)}


def apart(boxes: list[Box]) -> bool:
    """Whether no value lies in two boxes."""
    open_: list[Box] = []  # those that reach as far along the first dimension
    for box in sorted(boxes):
        if box:
            open_ = [other for other in open_ if other[0][1] > box[0][0]]
        for other in open_:
            if all(max(a, c) < min(b, d) for (a, b), (c, d) in zip(box, other, strict=True)):
                return False
        open_.append(box)
    return True


@torch.no_grad()
def load(slices: Iterable[Slice], tensors: Tensors) -> None:
    """Write what is stored into the views of a strategy.

    Raises UserError where a name is missing or has another shape: the recipe is another then.
    """
    loaded, at = set(), folder_name(tensors.step)
    for s in slices:
        if s.key not in tensors.shapes:
            raise UserError(f"The checkpoint {at} has no {s.key}: it is of another model.")
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
            f"The checkpoint {at} holds {extra[0]} and {len(extra) - 1} more "
            "that the model lacks: it is of another model."
        )
