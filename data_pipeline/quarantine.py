"""Samples that are masked unread by decision: named in a file beside the index, and marked in it.

Neither numbers, digest nor fingerprint move. The file is named by the digest of the set, so that an
index that is made again of the same shards finds it.
"""

import json
from collections.abc import Iterable

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.index import Index
from vtx_scale.data_pipeline.shards import read_whole
from vtx_scale.data_pipeline.storage import Storage

REASON = "quarantined"
Named = dict[int, tuple[str, str]]  # sample number -> (id, why)


def name_of(index: Index) -> str:
    """The name of the file of a set."""
    return f"quarantine-{index.digest.hex()[:32]}.json"


def stored(index: Index, root: Storage, prefix: str) -> Named:
    """What is in quarantine of a set by the file at a place, nothing where there is none.

    Raises UserError for a file that is torn: what it names must not come back in silence.
    """
    try:
        body = read_whole(root, f"{prefix}{name_of(index)}")
    except NotADirectoryError:
        return {}
    if body is None:
        return {}
    try:
        rows = json.loads(body)["samples"]
        return {int(g): (str(name), str(why)) for g, name, why in rows}
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{root}/{prefix}{name_of(index)} cannot be read: run 'vtx data quarantine' again, "
            "with --lift to begin anew."
        ) from None


def store(index: Index, named: Named) -> None:
    """Write the file beside the index; none where nothing is in quarantine. Raises OSError."""
    assert index.beside is not None
    root, prefix = index.beside
    if not named:
        root.delete(f"{prefix}{name_of(index)}")
        return
    rows = [[g, *named[g]] for g in sorted(named)]
    root.put(f"{prefix}{name_of(index)}", json.dumps({"samples": rows}).encode())


def marked(index: Index, numbers: Iterable[int]) -> None:
    """Let an index mask these samples, and no others, as quarantined."""
    kept = {g: why for g, why in index.bad.items() if why != REASON}
    index.bad = {**dict.fromkeys(numbers, REASON), **kept}


def kept_in(index: Index, places: Iterable[tuple[Storage, str]]) -> Index:
    """An index that was just made, with what is in quarantine by a file at one of these places.

    Raises UserError for a torn file, OSError for one that cannot be read.
    """
    for root, prefix in places:
        if named := stored(index, root, prefix):
            marked(index, named)
            break
    return index
