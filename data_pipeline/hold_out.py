"""Which samples are held out for validation: decided by their keys, kept as a mask beside the
index.
"""

import contextlib
import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.index import Index
from vtx_scale.data_pipeline.remote import cached_home
from vtx_scale.data_pipeline.scan import open_shard
from vtx_scale.data_pipeline.shards import Shards, encoded, read_whole
from vtx_scale.data_pipeline.storage import Folder
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
            mask = find(index, share)
            with contextlib.suppress(OSError):  # a read-only place: found again at each start
                store(index, share, mask)
        while len(_splits) >= SPLITS_KEPT:
            _splits.pop(next(iter(_splits)))
        _splits[which] = np.flatnonzero(~mask), np.flatnonzero(mask)
    train, held = _splits[which]
    return replace(index, keep=train), replace(index, keep=held)


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


class Words:
    """What decides of samples, of keys that come one after the other: the first 64 bits of the
    SHA-256 of each.
    """

    def __init__(self) -> None:
        self._words = array("Q")

    def __call__(self, key: str) -> None:
        """The key of the next sample."""
        digest = hashlib.sha256(encoded(key)).digest()
        self._words.append(int.from_bytes(digest[:8], "big"))

    def mask(self, share: float) -> Mask:
        """(N,): whether a sample is held out. Raises UserError where one side would be empty."""
        held: Mask = np.frombuffer(self._words, np.uint64).astype(np.float64) / 2.0**64 < share
        if held.all() or not held.any():
            raise UserError(
                f"data.hold_out={share} leaves one side of {len(held)} samples empty: "
                "give another share."
            )
        return held


def find(index: Index, share: float) -> Mask:
    """The mask of a share, from the headers of all shards. Raises UserError as `Words.mask`."""
    words = Words()
    for key in keys(index):
        words(key)
    return words.mask(share)


def store(index: Index, share: float, mask: Mask) -> None:
    """Keep a mask beside the index, if that is kept. Raises OSError where it cannot be written."""
    if index.beside is not None:
        root, prefix = index.beside
        about = {"format": "vtx-split", "samples": str(len(mask))}
        root.put(f"{prefix}{name_of(index, share)}", save({"held": np.packbits(mask)}, about))


def stored(index: Index, share: float) -> Mask | None:
    """The mask that is kept beside the index or in the cache; None where there is none, or a torn
    one.
    """
    body = kept(index, share)
    try:
        bits = load(body)["held"] if body is not None else None
    except Exception:  # torn, or another's: found again, never trusted
        return None
    if bits is None or bits.dtype != np.uint8 or len(bits) != -(-index.n // 8):
        return None
    return np.unpackbits(bits, count=index.n).astype(bool)


def kept(index: Index, share: float) -> bytes | None:
    """The stored mask of a share, None where there is none that can be read."""
    if index.beside is None:
        return None
    places = [index.beside]
    if not isinstance(index.root, Folder):
        places.append(cached_home(index.root))
    for root, prefix in places:
        with contextlib.suppress(OSError):
            if (body := read_whole(root, f"{prefix}{name_of(index, share)}")) is not None:
                return body
    return None


def name_of(index: Index, share: float) -> str:
    """The name of the mask of a share."""
    return f"split-{index.digest.hex()[:32]}-{share!r}.safetensors"
