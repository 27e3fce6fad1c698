"""Where values come from at a run's first start: `init.from`, and networks that an objective borrows (a teacher)."""

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vtx_scale.checkpoints.read import Tensors, newest
from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.interop.weights import import_network, import_weights, resize_positions
from vtx_scale.launch import override
from vtx_scale.launch.run_folder import recipe_of
from vtx_scale.specs.run import Run


def load_initial(run: Run, objective: Any, strategy: Any, say: Callable[[str], None]) -> None:
    """Fill what comes from elsewhere. Raises UserError where it does not fit."""
    borrowed = objective.borrowed()
    if run.init.from_:
        load_source(run.init.from_, run, strategy, say, tuple(borrowed))
    for prefix, source in borrowed.items():
        load_part(prefix, source, getattr(run.objective, prefix.rstrip(".")), strategy)


def stored(path: Path) -> dict[str, Tensor]:
    """Parameters and buffers of the newest checkpoint of a run folder."""
    found = newest(path / "checkpoints")
    if found is None:
        raise UserError(f"{path} has no whole checkpoint: run its training first.")
    tensors = Tensors(*found)
    return tensors.state("param") | tensors.state("buffer")


def load_source(source: str, run: Run, strategy: Any, say: Callable[[str], None] = print,
               borrowed: tuple[str, ...] = ()) -> None:
    """`init.from`: parameters and running statistics of a run folder or of exported weights.

    A plain network starts from the teacher of a run that has one (DINO). borrowed: prefixes that come from elsewhere.
    """
    path = Path(source)
    if not path.exists():
        raise UserError(f"init.from={source}: there is no such file or folder.")
    state = stored(path) if (path / "run.json").exists() else import_weights(path, run.objective)
    resized = resize_positions(state, run.objective)
    if resized is not state and strategy.rank == 0:
        say(f"init.from={source}: its position embeddings are resized to the recipe's resolution")

    heads = getattr(strategy.objective, "heads", ()) if run.init.head == "new" else ()
    if run.init.head == "new" and not heads:
        raise UserError(f"init.head=new: {type(run.objective).__name__} has no head that could start anew, leave it out.")
    left = (*borrowed, *heads)

    def candidates(name: str) -> Iterable[str]:
        return name, f"teacher.{name}"

    def wanted(name: str) -> bool:
        return not name.startswith(left)

    if (path / "run.json").exists() and strategy.rank == 0:
        for line in differences(path, run):
            say(f"init.from={source}: {line}")
    refuse_rest(resized, strategy, left, f"init.from={source}")
    fill(strategy, resized, candidates, wanted, f"init.from={source}")


LIST = re.compile(r"(.*?\b(?:blocks|stages))\.")  # what a network has several of
SHAPELESS = ("heads", "activation", "eps", "pool", "pixels", "patch", "kind", "class_token")  # what shapes do not show


def differences(path: Path, run: Run) -> list[str]:
    """What the networks of a run folder and of a recipe compute differently with the same weights."""
    differ = override.differences(replace(run, objective=recipe_of(path).objective), run)
    return [f"{key} was {a} there and is {b} here" for key, (a, b) in differ.items()
            if key.startswith("objective.") and key.rpartition(".")[2] in SHAPELESS]


def refuse_rest(state: dict[str, Tensor], strategy: Any, left: tuple[str, ...], source: str) -> None:
    """Raises UserError where a part that the recipe has holds more there: blocks that would be left out in silence."""
    here = {s.key.partition("/")[2] for s in strategy.slices()}
    lists = {m[1] for name in here if (m := LIST.match(name))}
    for name in state:
        both = (name, name.removeprefix("teacher."))  # a plain network takes a DINO's teacher
        deeper = any((m := LIST.match(n)) and m[1] in lists for n in both)
        if deeper and here.isdisjoint(both) and not name.startswith(left):
            raise UserError(f"{source}: it has {name}, which the recipe's network has not: make the recipe as deep.")


def load_part(prefix: str, source: str, network: Any, strategy: Any) -> None:
    """Fill the part `prefix` from a run folder's network or from exported weights of `network`."""
    path = Path(source)
    if not path.exists():
        raise UserError(f"objective.{prefix}from={source}: there is no such file or folder.".replace(".from", "_from"))
    state = stored(path) if (path / "run.json").exists() else import_network(path, network)
    head = state.get("net.head.weight", state.get("head.weight"))
    if head is not None and len(head) != network.classes:
        raise UserError(f"{source} knows {len(head)} classes and this recipe {network.classes}: give a teacher that was "
                        "trained on the same classes, or set the classes.")

    def candidates(name: str) -> Iterable[str]:
        own = name.removeprefix(prefix)
        return f"average.{own}", f"net.{own}", f"teacher.net.{own}", own

    fill(strategy, state, candidates, lambda name: name.startswith(prefix), source, statistics=True)


@torch.no_grad()
def fill(strategy: Any, state: dict[str, Tensor], candidates: Callable[[str], Iterable[str]], wanted: Callable[[str], bool],
         source: str, statistics: bool = False) -> None:
    """Copy into every wanted parameter and buffer the first of its candidates. Raises UserError for a shape that differs.

    statistics: whether running statistics must be there; else those of another kind of run begin anew.
    """
    for s in strategy.slices():
        kind, _, name = s.key.partition("/")
        if not wanted(name):
            continue
        there = next((c for c in candidates(name) if c in state), None)
        if there is None and kind == "buffer" and not statistics:
            continue
        if there is None or tuple(state[there].shape) != s.shape:
            have = tuple(state[there].shape) if there else "nothing"
            head = name.startswith(tuple(getattr(strategy.objective, "heads", ())))
            raise UserError(f"{source}: {name} is {s.shape} in the recipe and {have} there"
                            f"{'; init.head=new lets it start anew' if head else ''}.")
        s.tensor.copy_(state[there][tuple(slice(a, b) for a, b in s.box)])
