"""Evaluators on the validation samples: in the loop over all ranks, and on a finished run in one process."""

from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from launch import run_folder
from vtx_scale.specs.run import Run


def evaluator(name: str) -> Any:
    """The function `name` of `vtx_scale.evaluators.name`, or of a stranger's "package.module:function".

    Raises UserError where there is none.
    """
    from launch.build import follow

    if ":" in name:
        return follow(name)
    try:
        return follow(f"vtx_scale.evaluators.{name}:{name}")
    except UserError:
        import pkgutil

        from vtx_scale import evaluators

        have = ", ".join(m.name for m in pkgutil.iter_modules(evaluators.__path__))
        raise UserError(f"There is no evaluator {name!r}: choose of {have}, or give package.module:function.") from None


def scores(run: Run, objective: Any, names: list[str]) -> dict[str, dict[str, float]]:
    """The numbers of each evaluator; a rank looks at its share of the samples, and all ranks get the same numbers.

    Empty where the run names no validation samples. Raises UserError where an evaluator lacks what it needs.
    """
    from data_pipeline.loader import Loader
    from launch import build

    data = build.open_data(run, False)
    if data is None:
        return {}
    was, ranks = objective.training, objective.ranks
    objective.eval()
    try:
        out = {}
        for name in names:
            batches, count = build.eval_batches(run, data, ranks.rank, ranks.world)
            out[name] = evaluator(name)(objective.probes, Loader(batches, stop=count), data.classes, ranks)
        return out
    finally:
        objective.train(was)


def evaluate(folder: Path, names: list[str], run: Run | None = None) -> dict[str, dict[str, float]]:
    """`vtx evaluate`: evaluators on the newest checkpoint of a run folder."""
    from launch import build

    opened = run_folder.open_run(folder)
    run = run or opened.recipe
    if build.open_data(run, False) is None:
        raise UserError(f"{folder} names no validation samples: add data.val_shards=FOLDER.")
    return scores(run, opened.model, names or [e.name for e in run.evaluate] or ["zero_shot"])
