"""The samples of a recipe: opened, ordered, and hashed into the run's name. No torch."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.hold_out import split
from vtx_scale.data_pipeline.index import Index
from vtx_scale.data_pipeline.opening import open_index
from vtx_scale.data_pipeline.order import Order
from vtx_scale.data_pipeline.shards import Shards
from vtx_scale.data_pipeline.text import tokenizer
from vtx_scale.launch.opened import opened
from vtx_scale.launch.override import recipe_hash
from vtx_scale.launch.places import shards_at
from vtx_scale.specs.run import Run
from vtx_scale.trainer.output import silent


@dataclass(frozen=True)
class DataSet:
    """An indexed set of samples, and the names of their classes: classes.txt beside the shards, or
    one folder up.
    """

    index: Index
    classes: list[str] | None


def open_data(run: Run, train: bool, say: Callable[[str], None] = silent) -> DataSet | None:
    """The training or validation samples of a recipe; None where it names no validation samples."""
    data = run.data
    if not train and data.val_shards:
        return data_set(data.val_shards, say)
    if not train and not data.hold_out:
        return None
    everything = data_set(data.shards, say)
    if not data.hold_out:
        return everything
    kept, held = split(everything.index, data.hold_out)
    return replace(everything, index=kept if train else held)


def training_data(run: Run, say: Callable[[str], None] = silent) -> DataSet:
    """The training samples of a recipe."""
    data = open_data(run, True, say)
    assert data is not None
    return data


def data_set(shards: str, say: Callable[[str], None]) -> DataSet:
    """Raises UserError where no shard holds a sample."""
    listed = shards_at(shards, say)
    index, classes = opened(listed) if listed.remote else (open_index(listed, say=say), None)
    if index.n == 0:
        raise UserError(f"{shards} holds no samples: no member of a shard is named as 0001.jpg is.")
    return DataSet(index, classes if listed.remote else local_classes(listed))


def local_classes(shards: Shards) -> list[str] | None:
    """The lines of classes.txt."""
    folder = shards.local(".")
    for at in (folder, folder.parent):
        if (at / "classes.txt").exists():
            return (at / "classes.txt").read_text().splitlines()
    return None


def order_of(run: Run, index: Index) -> Order:
    """Which sample stands in which slot."""
    return Order(index.chunk_samples, seed=run.seed, lanes=run.data.lanes, window=run.data.window)


def fingerprint_of(run: Run, data: DataSet) -> str:
    """Names the samples and their order."""
    return order_of(run, data.index).fingerprint([data.index.digest])


def hash_of(run: Run, fingerprint: str) -> str:
    """The name of a run whose data has this fingerprint."""
    return recipe_hash(run, fingerprint, tokenizer(run.data.tokenizer).fingerprint)
