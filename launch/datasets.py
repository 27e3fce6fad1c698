"""The samples of a recipe: opened, ordered, and hashed into the run's name. No torch."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from vtx_scale.data_pipeline.codes import Coding, alike
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.hold_out import split
from vtx_scale.data_pipeline.index import Index
from vtx_scale.data_pipeline.mix import Mix
from vtx_scale.data_pipeline.opening import open_index
from vtx_scale.data_pipeline.order import Order
from vtx_scale.data_pipeline.shards import Shards
from vtx_scale.data_pipeline.text import tokenizer
from vtx_scale.data_pipeline.weights import shares
from vtx_scale.launch.banner import steps_of
from vtx_scale.launch.opened import coding as coding_at
from vtx_scale.launch.opened import opened
from vtx_scale.launch.override import recipe_hash
from vtx_scale.launch.places import shards_at
from vtx_scale.specs.run import Run
from vtx_scale.trainer.output import silent

NEAR = 8  # samples of a lane, below which its neighbours in a shard are dealt in turn


@dataclass(frozen=True)
class DataSet:
    """An indexed set of samples, and what classes.txt beside its shards, or one folder up, lists.
    more: the other sources of a mix; each of its sources has a name.
    """

    index: Index
    listed: list[str] | None
    name: str = ""
    more: tuple["DataSet", ...] = ()

    @property
    def sources(self) -> tuple["DataSet", ...]:
        """All of them, each alone."""
        return (replace(self, more=()), *self.more)

    @property
    def indexes(self) -> tuple[Index, ...]:
        """Of all sources."""
        return tuple(source.index for source in self.sources)

    @property
    def names(self) -> tuple[str, ...]:
        """Of all sources; none where they have none."""
        return tuple(source.name for source in self.sources if source.name)

    @property
    def n(self) -> int:
        """Samples of all sources."""
        return sum(index.n for index in self.indexes)

    @property
    def classes(self) -> list[str] | None:
        """The names of their classes. Raises UserError where sources have different ones."""
        found = {source.name: source.listed for source in self.sources}
        lists = {name: classes for name, classes in found.items() if classes is not None}
        first = next(iter(lists), None)
        for name in lists:
            if lists[name] != lists[first or ""]:
                raise UserError(
                    f"The sources {first} and {name} have different classes.txt: give "
                    "data.val_shards of one of them."
                )
        return lists[first] if first is not None else None


def open_data(run: Run, train: bool, say: Callable[[str], None] = silent) -> DataSet | None:
    """The training or validation samples of a recipe; None where it names no validation samples."""
    data = run.data
    if not train and data.val_shards:
        return data_set(data.val_shards, say)
    if not train and not data.hold_out:
        return None
    if data.sources:
        parts = [replace(data_set(s.shards, say), name=s.name) for s in data.sources]
    else:
        parts = [data_set(data.shards, say)]
    if data.hold_out:
        side = 0 if train else 1
        parts = [replace(part, index=split(part.index, data.hold_out)[side]) for part in parts]
    return replace(parts[0], more=tuple(parts[1:]))


def training_data(run: Run, say: Callable[[str], None] = silent) -> DataSet:
    """The training samples of a recipe."""
    data = open_data(run, True, say)
    assert data is not None
    return data


def resolve_epochs(run: Run, say: Callable[[str], None] = silent) -> Run:
    """A run of so many steps in place of epochs, as many as its training samples need."""
    if run.epochs is None:
        return run
    steps = steps_of(run.epochs, training_data(run, say).n, run.global_batch)
    return replace(run, steps=steps, epochs=None)


def coding(run: Run, data: DataSet | None) -> Coding | None:
    """Of which codec the codes are that these shards hold; None of pictures, and for an objective
    that reads pictures alone. Raises UserError where a set is not one.
    """
    if data is None or not type(run.objective).coded_by:
        return None
    found = {source.name: coding_at(source.index) for source in data.sources}
    first = next(iter(found.values()))
    for name, other in found.items():
        if (first and alike(first)) != (other and alike(other)):
            raise UserError(
                f"The source {name} holds {f'codes of {other}' if other else 'pictures'} and "
                f"{next(iter(found))} {f'codes of {first}' if first else 'pictures'}: give sources "
                "of pictures, or of codes of one codec and one crop."
            )
    return first


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


def order_of(run: Run, *indexes: Index) -> Order | Mix:
    """Which sample stands in which slot. indexes: of all sources, where the recipe has a mix."""
    seed, lanes, window = run.seed, run.data.lanes, run.data.window
    if not run.data.sources:
        return Order(indexes[0].chunk_samples, seed=seed, lanes=lanes, window=window)
    weights = shares([source.weight for source in run.data.sources])
    chunks = [index.chunk_samples for index in indexes]
    return Mix(chunks, seed, [(0, weights)], lanes=lanes, window=window)


def thin_sources(run: Run, data: DataSet) -> list[str]:
    """A sentence on each source of a mix of which neighbours in a shard come soon after each other,
    since it has few samples for the lanes that all sources have.
    """
    if not data.more:
        return []
    lanes = order_of(run, *data.indexes).lanes
    return [
        f"source {source.name} has {source.index.n} samples for {lanes} lanes, so that neighbours "
        f"in its shards come soon after each other: data.lanes={max(1, source.index.n // 256)} "
        "shuffles it better"
        for source in data.sources
        if source.index.n < NEAR * lanes and lanes > 1
    ]


def fingerprint_of(run: Run, data: DataSet) -> str:
    """Names the samples and their order."""
    return order_of(run, *data.indexes).fingerprint([index.digest for index in data.indexes])


def hash_of(run: Run, fingerprint: str) -> str:
    """The name of a run whose data has this fingerprint."""
    return recipe_hash(run, fingerprint, tokenizer(run.data.tokenizer).fingerprint)
