"""From a recipe to live parts: the one place that follows the dotted paths of the specs."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vtx_scale.blocks.norm import BatchNorm
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.data_pipeline.index import open_index
from vtx_scale.data_pipeline.loader import Batches, InOrder
from vtx_scale.data_pipeline.order import Order
from vtx_scale.data_pipeline.text import tokenizer
from vtx_scale.launch.override import recipe_hash
from vtx_scale.objectives.ranks import Ranks
from vtx_scale.specs.run import Data, Run


def follow(path: str) -> Any:
    """The object behind "package.module:Name". Raises UserError where there is none."""
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as e:
        raise UserError(f"{path!r} cannot be imported ({e}): put its folder on PYTHONPATH or beside the recipe.") from e


def build_objective(run: Run, dtype: torch.dtype, ranks: Any = None) -> nn.Module:
    """The objective on the meta device."""
    with torch.device("meta"):
        objective = follow(type(run.objective).build)(run.objective, ranks or Ranks())
    objective.to(dtype)
    objective.micro_batch, objective.tokenizer = run.system.micro_batch, run.data.tokenizer
    objective.seed, objective.steps, objective.augment = run.seed, run.steps, run.data.augment
    check_data(run.data, objective)
    if ranks is not None:  # a training, which alone takes statistics of a batch
        check_micro_batch(run, objective, ranks.world)
    return objective


def check_data(data: Data, objective: Any) -> None:
    """Raises UserError for what the objective would leave out in silence."""
    picture = ("crop", "ratio", "zoom", "spread", "flip", "bicubic", "centre", "tokenizer")
    if objective.heeds is not None:
        asked = [f.name for f in fields(data) if f.name in picture and f.name not in objective.heeds
                 and getattr(data, f.name) != f.default]
        if asked:
            raise UserError(f"data.{asked[0]} is not for {type(objective.spec).__name__}, which cuts pictures and texts in its "
                            "own way: leave it out.")
    augment = data.augment
    made = {"no": (), "pictures": ("randaug_",), "all": ("",)}[objective.augments]
    asked = [f.name for f in fields(augment) if getattr(augment, f.name) != f.default and not f.name.startswith(made)]
    if asked:
        raise UserError(f"data.augment.{asked[0]} is not for {type(objective.spec).__name__}: leave it out.")


def check_micro_batch(run: Run, objective: nn.Module, world: int) -> None:
    """Raises UserError where batch statistics are to be taken of less than a batch."""
    micro, share = run.system.micro_batch, -(-run.global_batch // world)
    trained = any(isinstance(m, BatchNorm) and m.weight.requires_grad for m in objective.modules())
    if micro is not None and micro < share and trained:
        raise UserError(f"system.micro_batch={micro} is less than a rank's {share} slots, but this model's batch norms are "
                        "over the whole batch: leave it out, use more ranks, or set system.recompute=true to save memory.")


# what an objective may borrow -> the recipe whose smoke size stands for one, and the specs of such networks
PARTS = {"teacher": ("resnet18_imagenet", ("ResNet", "ViT")), "codec": ("dvae_dalle", ("Codec",))}


@dataclass(frozen=True)
class DataSet:
    """An indexed set of samples, and where its shards lie."""

    index: Any
    folder: Path

    @property
    def classes(self) -> list[str] | None:
        """classes.txt beside the shards, or one folder up."""
        for at in (self.folder, self.folder.parent):
            if (at / "classes.txt").exists():
                return (at / "classes.txt").read_text().splitlines()
        return None


def resolve_data(run: Run, say: Callable[[str], None] = lambda line: None, folder: Path | None = None) -> Run:
    """What a recipe leaves open: `data.shards=toy` becomes a folder of toy shards, made once in the cache; a teacher or codec
    that is a run says its network; so does a start that a smoke size goes on from; a palette's file becomes its colours.
    folder: of the run, if it is there already."""
    for part in PARTS:
        run = resolve_borrowed(run, part, say, folder)
    return resolve_shards(resolve_palette(resolve_start(run, say)), say)


def resolve_shards(run: Run, say: Callable[[str], None] = lambda line: None) -> Run:
    """The same of the data alone."""
    from vtx_scale.launch.toys import toy_shards

    if run.data.shards != "toy":
        return run
    train, val = toy_shards(say)
    beside = run.data.val_shards or ("" if run.data.hold_out else str(val))
    return replace(run, data=replace(run.data, shards=str(train), val_shards=beside))


def resolve_start(run: Run, say: Callable[[str], None]) -> Run:
    """`init.from=smoke:RECIPE` is a tiny run of that recipe, made once in the cache."""
    from vtx_scale.launch.toys import toy_run

    kind, _, recipe = run.init.from_.partition(":")
    if kind != "smoke" or not recipe:
        return run
    return replace(run, init=replace(run.init, from_=str(toy_run(recipe, say))))


def resolve_borrowed(run: Run, part: str, say: Callable[[str], None], begun: Path | None) -> Run:
    """`objective.PART`, a "teacher" or a "codec", is the network that the run in `objective.PART_from` trained; "smoke" is a
    tiny one made once in the cache.

    A run that has begun has it in its checkpoints, and goes on where the folder is gone.
    """
    from vtx_scale.launch.run_folder import recipe_of
    from vtx_scale.launch.toys import toy_run

    objective: Any = run.objective
    source = getattr(objective, f"{part}_from", "")
    if source in ("", "required"):
        return run
    folder = toy_run(PARTS[part][0], say) if source == "smoke" else Path(source)
    objective = replace(objective, **{f"{part}_from": str(folder)})
    told = [f.name for f in fields(objective) if f.name in (part, f"{part}_pixels")]  # what the run of the part knows better
    if (folder / "run.json").exists():
        theirs: Any = recipe_of(folder).objective
        if type(getattr(theirs, "net", None)).__name__ not in PARTS[part][1]:
            raise UserError(f"{folder} trained a {type(theirs).__name__}, which is no {part}: give a run of a "
                            f"{' or '.join(PARTS[part][1])}, as {PARTS[part][0]} trains one.")
        known = {part: theirs.net, f"{part}_pixels": getattr(theirs, "pixels", None)}
        objective = replace(objective, **{name: known[name] for name in told})
    elif begun is not None and (begun / "run.json").exists():
        before: Any = recipe_of(begun).objective
        if getattr(before, f"{part}_from", None) == str(folder):
            objective = replace(objective, **{name: getattr(before, name) for name in told})
    return replace(run, objective=objective)


def resolve_palette(run: Run) -> Run:
    """`objective.palette` that names a file becomes the colours in it, so that they count in the hash and not their path."""
    from vtx_scale.objectives.palette import read_palette

    objective: Any = run.objective
    path = Path(getattr(objective, "palette", ""))
    if len(str(path)) > 1_000 or not path.is_file():  # colours in hexadecimal are longer than any path
        return run
    return replace(run, objective=replace(objective, palette=read_palette(path)))


def open_data(run: Run, train: bool, say: Callable[[str], None] = lambda line: None) -> DataSet | None:
    """The training or validation samples of a recipe; None where it names no validation samples."""
    data = run.data
    if not train and data.val_shards:
        return data_set(data.val_shards, say)
    if not train and not data.hold_out:
        return None
    whole = data_set(data.shards, say)
    if not data.hold_out:
        return whole
    kept, held = whole.index.split(data.hold_out)
    return replace(whole, index=kept if train else held)


def data_set(shards: str, say: Callable[[str], None]) -> DataSet:
    index = open_index(shards, say=say)
    if index.n == 0:
        raise UserError(f"{shards} holds no samples: every shard is empty.")
    return DataSet(index, Path(index.root))


def order_of(run: Run, index: Any) -> Order:
    return Order(index.chunk_samples, seed=run.seed, lanes=run.data.lanes, window=run.data.window)


def hash_of(run: Run, fingerprint: str) -> str:
    """The name of a run whose data has this fingerprint."""
    return recipe_hash(run, fingerprint, tokenizer(run.data.tokenizer).fingerprint)


def reader_of(run: Run, train: bool) -> Any:
    return follow(type(run.objective).build).reader(run.objective, run.data, train)


def train_batches(run: Run, data: DataSet, rank: int, world: int) -> Batches:
    return Batches(data.index, order_of(run, data.index), reader_of(run, True), run.global_batch, rank, world, run.seed)


def eval_batches(run: Run, data: DataSet, rank: int = 0, world: int = 1, size: int = 64) -> tuple[Batches, int]:
    """Every validation sample once over all ranks, in tar order; and the number of batches, the same on every rank.

    size: slots of a rank in a batch.
    """
    n, whole = data.index.n, size * world
    return Batches(data.index, InOrder(n), reader_of(run, False), whole, rank, world, run.seed), -(-n // whole)
