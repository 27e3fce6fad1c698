"""A run on many ranks against the same run on one: what it learned, and what it says of it."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.runs import lines, losses, norms, tensors, train_on_ranks

# of keys of an attention, which every query adds alike: their gradient is nought in exact
# arithmetic, and AdamW follows what rounding left of it
NOUGHT = re.compile(r".*(qkv|kv|\.k)\.bias")


def runs_alone(factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """(recipe, keys) -> the folder of that run on one process, trained once."""
    folders: dict[tuple[str, ...], Path] = {}

    def get(recipe: str, *keys: str) -> Path:
        if (recipe, *keys) not in folders:
            folder = folders[(recipe, *keys)] = factory.mktemp("alone") / "run"
            train_on_ranks(folder, 1, "single", *keys, recipe=recipe)
        return folders[(recipe, *keys)]

    return get


def scores(folder: Path) -> dict[str, float]:
    """What the evaluators said, by name and number."""
    return {
        f"{row['name']}/{key}": value
        for row in lines(folder / "evaluations.jsonl")
        for key, value in row.items()
        if key not in ("name", "time", "seconds")
    }


def assert_same_run(many: Path, one: Path, rel: float = 1e-5, apart: float = 1e-4) -> None:
    """Losses, gradient norms and evaluators within `rel` of each other, parameters and buffers
    at the end within `apart`; the same tensors are saved.
    """
    assert losses(many) == pytest.approx(losses(one), rel=rel)
    assert norms(many) == pytest.approx(norms(one), rel=rel)
    assert scores(many) == pytest.approx(scores(one), rel=rel) and scores(many)
    found, wanted = tensors(many), tensors(one)
    assert found.keys() == wanted.keys()
    learned = [k for k in wanted if k.startswith(("param/", "buffer/")) and not NOUGHT.fullmatch(k)]
    far = {k: (found[k] - wanted[k]).abs().max().item() for k in learned}
    assert len(far) > 7 and max(far.values()) < apart, max(far.items(), key=lambda x: x[1])
