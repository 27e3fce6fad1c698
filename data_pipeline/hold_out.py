"""Which samples are held out for validation: decided by their keys, kept as a mask beside the
index.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.index import Index
from vtx_scale.data_pipeline.scan import open_shard
from vtx_scale.data_pipeline.shards import Shards, encoded, read_whole
from vtx_scale.data_pipeline.tar import Problem, samples

Mask = NDArray[np.bool_]


def split(index: Index, share: float) -> tuple[Index, Index]:
    """(training, validation): a sample is held out where the SHA-256 of its key, in [0, 1), is
    below `share`.

    Both are restrictions of this one, which must be whole; the keys are read from the headers once
    and the mask is kept beside the index. Raises UserError where one side would be empty, and where
    shards in a bucket have no mask yet.
    """
    which = (index.digest, share)
    if which not in _splits:
        mask = stored(index, share)
        if mask is None:
            if Shards(index.root, index.names, "").remote:
                raise UserError(
                    f"data.hold_out={share}: which samples of {index.root} are held out is not "
                    f"known yet: run 'vtx data index SHARDS --hold-out {share}' once."
                )
            mask = store(index, share)
        while len(_splits) >= SPLITS_KEPT:
            _splits.pop(next(iter(_splits)))
        _splits[which] = np.flatnonzero(~mask), np.flatnonzero(mask)
    kept, held = _splits[which]
    return replace(index, keep=kept), replace(index, keep=held)


# of the sources of a mix: every evaluation asks again
SPLITS_KEPT = 16
_splits: dict[tuple[bytes, float], tuple[NDArray[np.int64], NDArray[np.int64]]] = {}


def keys(index: Index) -> Iterator[str]:
    """The key of every sample of the whole set, from the headers alone.

    Raises UserError where they changed.
    """
    expected = np.diff(index.sample_first[index.chunk_first]).tolist()
    shards = Shards(index.root, index.names, str(index.root))
    for (name, path, _), count in zip(shards.files(), expected, strict=True):
        url = shards.url(name)
        with open_shard(path, url) as shard:
            found = [item.key for item in samples(shard) if not isinstance(item, Problem)]
        if len(found) != count:
            raise UserError(
                f"{url} holds {len(found)} samples and held {count} when it was "
                "indexed: put the shard back, or remove its index to begin anew."
            )
        yield from found


def mask_of(index: Index, share: float) -> Mask:
    """(N,): whether a sample is held out. Raises UserError where one side would be empty."""
    words = (hashlib.sha256(encoded(key)).digest() for key in keys(index))
    mask = np.array([int.from_bytes(word[:8], "big") / 2**64 < share for word in words], bool)
    if mask.all() or not mask.any():
        raise UserError(
            f"data.hold_out={share} leaves one side of {index.n} samples empty: give another share."
        )
    return mask


def store(index: Index, share: float) -> Mask:
    """The mask, kept beside the index where that can be written."""
    mask = mask_of(index, share)
    tensors: dict[str, NDArray[Any]] = {"held": np.packbits(mask)}
    about = {"format": "vtx-split", "samples": str(len(mask))}
    if index.beside is not None:
        root, prefix = index.beside
        with contextlib.suppress(OSError):  # a read-only place: found again at each start
            root.put(f"{prefix}{name_of(index, share)}", save(tensors, about))
    return mask


def stored(index: Index, share: float) -> Mask | None:
    """The mask that is kept beside the index; None where there is none, or a torn one."""
    if index.beside is None:
        return None
    root, prefix = index.beside
    try:
        body = read_whole(root, f"{prefix}{name_of(index, share)}")
        bits = load(body)["held"] if body is not None else None
    except Exception:  # torn, or another's: found again, never trusted
        return None
    if bits is None or bits.dtype != np.uint8 or len(bits) != -(-index.n // 8):
        return None
    return np.unpackbits(bits, count=index.n).astype(bool)


def name_of(index: Index, share: float) -> str:
    """The name of the mask of a share."""
    return f"split-{index.digest.hex()[:32]}-{share!r}.safetensors"
