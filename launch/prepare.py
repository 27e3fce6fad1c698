"""What happens before the first rank starts: the data is indexed, what does not fit is refused, run.json is written. No torch."""

from pathlib import Path

from vtx_scale.data_pipeline.errors import UserError
from vtx_scale.evaluators import NAMES
from vtx_scale.launch import run_folder
from vtx_scale.launch.datasets import fingerprint_of, hash_of, open_data, training_data
from vtx_scale.specs.imports import import_object
from vtx_scale.specs.run import Run
from vtx_scale.trainer.output import say


def prepare_folder(run: Run, folder: Path, fork: bool = False) -> None:
    """Index the data, refuse what does not fit the folder or cannot be evaluated, write run.json.

    Raises UserError.
    """
    for evaluation in run.evaluate:
        check_evaluator(evaluation.name)
    (folder / "control" / "stop").unlink(missing_ok=True)  # a request to the start before this one
    data = training_data(run, say)
    if run.evaluate and open_data(run, False, say) is None:
        say(f"no data.val_shards: {', '.join(e.name for e in run.evaluate)} will be left out")
    run_folder.prepare(run, folder, fingerprint_of(run, data), hash_of, fork)


def check_evaluator(name: str) -> None:
    """Raises UserError where there is no evaluator of this name, or a stranger's cannot be imported."""
    if ":" in name:
        import_object(name)
    elif name not in NAMES:
        raise UserError(
            f"There is no evaluator {name!r}: choose of {', '.join(NAMES)}, or give package.module:function."
        )
