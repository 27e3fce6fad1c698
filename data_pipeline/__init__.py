"""From tars to batches.

Reading order: errors, tar, foreign, lists, storage, objects, shards, layout, scan, pool, index,
quarantine, remote, opening, hold_out, order, weights, mix, plan, chunks, book, cache, prefetch,
cached, read, members, decode, restarts, codes, augment, text, batch, sources, state, loader, video,
wds, tools.

What others use is in `__all__`, and loaded when it is asked for: `errors` is imported where a
refusal must be quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vtx_scale.data_pipeline.batch import Batch
    from vtx_scale.data_pipeline.batches import Batches, Reader
    from vtx_scale.data_pipeline.errors import BadSample, UserError
    from vtx_scale.data_pipeline.index import Index
    from vtx_scale.data_pipeline.loader import Loader
    from vtx_scale.data_pipeline.mix import Mix
    from vtx_scale.data_pipeline.opening import open_index
    from vtx_scale.data_pipeline.order import Order
    from vtx_scale.data_pipeline.storage import Folder, Storage
    from vtx_scale.data_pipeline.text import Tokenizer, tokenizer
    from vtx_scale.data_pipeline.wds import Source, Staged

__all__ = [
    "BadSample",
    "Batch",
    "Batches",
    "Folder",
    "Index",
    "Loader",
    "Mix",
    "Order",
    "Reader",
    "Source",
    "Staged",
    "Storage",
    "Tokenizer",
    "UserError",
    "open_index",
    "tokenizer",
]

HOMES = {
    "batch": ("Batch",),
    "errors": ("BadSample", "UserError"),
    "index": ("Index",),
    "loader": ("Batches", "Loader", "Reader"),
    "mix": ("Mix",),
    "opening": ("open_index",),
    "order": ("Order",),
    "storage": ("Folder", "Storage"),
    "text": ("Tokenizer", "tokenizer"),
    "wds": ("Source", "Staged"),
}


def __getattr__(name: str) -> Any:
    home = next((file for file, names in HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
