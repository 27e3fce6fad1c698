"""Reading a checkpoint of any strategy and world into any other. Every byte is verified first."""

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from vtx_scale.checkpoints.format import Damaged, check_file, folder_name, read_manifest, steps
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.distributed.sharding import Box, Slice


def verify(folder: Path) -> dict[str, Any]:
    """Check every file against the manifest and return it. Raises Damaged."""
    manifest = read_manifest(folder)
    for name, entry in manifest["files"].items():
        check_file(folder, name, entry)
    return manifest


def newest(folder: Path, say: Callable[[str], None] = print) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint of a run that is whole, passing over damaged ones with a line each."""
    for step in reversed(steps(folder)):
        path = folder / folder_name(step)
        try:
            return path, verify(path)
        except Damaged as e:
            say(f"checkpoint {path.name} is damaged ({e}): passed over")
    return None


def listing(folder: Path, deep: bool = False) -> list[dict[str, Any]]:
    """A row a checkpoint: step, bytes, valid, reason.

    `deep` verifies every byte, else the manifest alone.
    """
    rows = []
    for step in steps(folder):
        path = folder / folder_name(step)
        size = sum(p.stat().st_size for p in path.iterdir())
        try:
            manifest = verify(path) if deep else read_manifest(path)
            rows.append(
                {
                    "step": step,
                    "bytes": size,
                    "valid": True,
                    "reason": "",
                    "strategy": manifest.get("strategy", ""),
                    "world": manifest.get("world", 0),
                }
            )
        except (Damaged, UserError) as e:
            rows.append(
                {
                    "step": step,
                    "bytes": size,
                    "valid": False,
                    "reason": str(e),
                    "strategy": "",
                    "world": 0,
                }
            )
    return rows


class Tensors:
    """The tensors of a verified checkpoint by canonical key, assembled box by box on demand."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self._boxes: dict[str, list[tuple[Box, str, str]]] = {}
        self._open: dict[str, Any] = {}
        for name in manifest["files"]:
            if not name.startswith("table-"):
                continue
            data = name.replace("table-", "data-").replace(".json", ".safetensors")
            for row in json.loads((folder / name).read_bytes())["slices"]:
                key = row["key"]
                self.shapes[key] = tuple(row["shape"])
                self.dtypes[key] = getattr(torch, row["dtype"])
                box = tuple((a, b) for a, b in row["box"])
                self._boxes.setdefault(key, []).append((box, data, row["entry"]))

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
            if file not in self._open:
                self._open[file] = safe_open(self.folder / file, framework="pt")
            if both:
                at = tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(both, have, strict=True))
                part = self._open[file].get_slice(entry)[at]
                view = out[
                    tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(both, box, strict=True))
                ]
            else:
                part, view = self._open[file].get_tensor(entry), out
            view.copy_(part)
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
